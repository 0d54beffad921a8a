//! Where a controller is, written as LINSTOR's own client has it.

use std::{fmt, net::IpAddr, str::FromStr};

/// Ports of a controller that are not written: without TLS, and with it.
const PORTS: [u16; 2] = [3370, 3371];
/// Most controllers in a list.
const CONTROLLERS_MAX: usize = 32;
/// Longest name of a host, in bytes.
const HOST_MAX: usize = 253;

/// Why a text names no controller.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no address of a LINSTOR controller: {why}; write linstor://host, \
     linstor+ssl://host, http://host:port or https://host:port, several with a comma between"
)]
pub struct AddressError {
    /// The text, or its beginning.
    text: String,
    why: &'static str,
}

/// The address of a controller.
///
/// ```
/// use driftline_linstor::Controller;
///
/// let list = Controller::list("linstor://alpha, https://[fd00::2]:8443")?;
/// assert_eq!(list[0].to_string(), "http://alpha:3370");
/// assert_eq!(list[1].to_string(), "https://[fd00::2]:8443");
/// # Ok::<(), driftline_linstor::AddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Controller {
    tls: bool,
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    host: String,
    port: u16,
}

impl Controller {
    /// The controllers of a list with commas, such as that in the variable `LS_CONTROLLERS`,
    /// in its order. At least one.
    ///
    /// # Errors
    ///
    /// What is no address, and a list of more than 32.
    pub fn list(text: &str) -> Result<Vec<Self>, AddressError> {
        if text.split(',').count() > CONTROLLERS_MAX {
            return Err(error(text, "these are more than 32"));
        }
        text.split(',').map(str::parse).collect()
    }

    /// Whether it is spoken to with TLS.
    pub const fn tls(&self) -> bool {
        self.tls
    }

    /// Whether what is sent there stays on this machine.
    pub fn is_local(&self) -> bool {
        let address = self.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.map_or(self.host == "localhost", |address| address.is_loopback())
    }
}

impl FromStr for Controller {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let fail = |why| error(text, why);
        let (scheme, rest) = text.split_once("://").unwrap_or(("linstor", text));
        let tls = match scheme {
            "linstor" | "http" => false,
            "linstor+ssl" | "https" => true,
            _ => return Err(fail("it is spoken to in another way than LINSTOR's")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let host_len = match rest.strip_prefix('[') {
            Some(_) => rest.find(']').ok_or_else(|| fail("a bracket is open"))? + 1,
            None => rest.find(':').unwrap_or(rest.len()),
        };
        let (host, port) = rest.split_at(host_len);
        check_host(host).map_err(fail)?;
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => PORTS[usize::from(tls)],
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| fail("there is no such port"))?,
            _ => return Err(fail("its port is no number")),
        };
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

/// Nothing that could be taken for another part of an address.
fn check_host(host: &str) -> Result<(), &'static str> {
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match inner.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => Ok(()),
            _ => Err("what is in brackets is no IPv6 address"),
        };
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match host.len() {
        0 => Err("it names no host"),
        1..=HOST_MAX if host.bytes().all(legal) => Ok(()),
        _ => Err("its host is none"),
    }
}

fn error(text: &str, why: &'static str) -> AddressError {
    AddressError { text: text.chars().take(HOST_MAX).collect(), why }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_linstors_own_client_reads_them() {
        for (text, url) in [
            ("alpha", "http://alpha:3370"),
            ("alpha:4000", "http://alpha:4000"),
            ("linstor://alpha", "http://alpha:3370"),
            ("linstor+ssl://alpha", "https://alpha:3371"),
            ("http://alpha.example.org", "http://alpha.example.org:3370"),
            ("https://10.0.0.7", "https://10.0.0.7:3371"),
            ("https://10.0.0.7:443/", "https://10.0.0.7:443"),
            (" linstor://[::1] ", "http://[::1]:3370"),
            ("linstor+ssl://[fd00::1]:1", "https://[fd00::1]:1"),
        ] {
            assert_eq!(text.parse::<Controller>().map(|c| c.to_string()), Ok(url.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_forms_there_are() {
        let long = "x".repeat(HOST_MAX + 1);
        for bad in [
            "",
            "linstor://",
            "ftp://alpha",
            "alpha:",
            "alpha:0",
            "alpha:65536",
            "alpha:+1",
            "alpha:1:2",
            "al pha",
            "alpha/x",
            "alpha?x",
            "alpha#x",
            "user@alpha",
            "http://alpha/v1",
            "[::1",
            "[alpha]",
            "[127.0.0.1]",
            "[::1]x",
            "::1",
            "\u{e4}",
            &long,
        ] {
            let error = bad.parse::<Controller>().expect_err(bad).to_string();
            assert!(error.contains("write linstor://host"), "{error}");
            assert!(error.len() < 600, "{error}");
        }
        assert!(Controller::list("a,,b").is_err());
        assert!(Controller::list("").is_err());
        assert!(Controller::list(&["a"; 32].join(",")).is_ok());
        assert!(Controller::list(&["a"; 33].join(",")).is_err());
    }

    #[test]
    fn what_is_local_is_told() {
        for (text, local) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("[::1]", true),
            ("[fd00::1]", false),
            ("10.0.0.1", false),
            ("localhost.example.org", false),
            ("127.0.0.1.example.org", false),
        ] {
            assert_eq!(text.parse::<Controller>().map(|c| c.is_local()), Ok(local), "{text}");
        }
    }
}
