//! Long-term keys: what they are, and how they are written down.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, Specification};
use snow::{
    params::DHChoice,
    resolvers::{CryptoResolver, DefaultResolver},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of a key in bytes.
const KEY_LEN: usize = 32;
/// Bytes of a written key that only guard against slips of the pen.
const CHECK_LEN: usize = 3;
const PUBLIC_PREFIX: &str = "dlp1";
const SECRET_PREFIX: &str = "dls1";

/// A peer's public key, by which it is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

/// One's own secret key. Wiped from memory when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; KEY_LEN]);

/// Why text is not a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not start as this kind of key does.
    #[error("a {kind} key starts with {prefix}")]
    Prefix {
        /// Public or secret.
        kind: &'static str,
        /// How it should start.
        prefix: &'static str,
    },
    /// It is too long, too short, or has characters that keys have not.
    #[error("the key is not complete: 56 letters and digits follow {prefix}")]
    Malformed {
        /// How it starts.
        prefix: &'static str,
    },
    /// The check characters at its end do not match: it was mistyped.
    #[error("the key is mistyped: its check characters do not match")]
    Mistyped,
}

impl SecretKey {
    /// The secret key made of these random bytes.
    pub const fn from_random(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        let mut dh = DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .expect("snow is built with Curve25519, or no handshake would work either");
        dh.set(&self.0);
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(dh.pubkey());
        PublicKey(public)
    }

    /// The key as text, to be written to a file that only its owner reads.
    pub fn to_text(&self) -> String {
        to_text(SECRET_PREFIX, &self.0)
    }

    pub(crate) const fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_text("secret", SECRET_PREFIX, text).map(Self)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_text("public", PUBLIC_PREFIX, text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(PUBLIC_PREFIX, &self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Base32 in small letters: survives being read aloud, and a double click selects it.
fn encoding() -> data_encoding::Encoding {
    let mut spec: Specification = BASE32_NOPAD.specification();
    spec.symbols = spec.symbols.to_lowercase();
    spec.encoding().expect("lower case keeps the symbols of base32 distinct")
}

fn check(prefix: &str, key: &[u8; KEY_LEN]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prefix.as_bytes()).update(key);
    let [a, b, c, ..] = *hasher.finalize().as_bytes();
    [a, b, c]
}

fn to_text(prefix: &str, key: &[u8; KEY_LEN]) -> String {
    let bytes: Vec<u8> = key.iter().copied().chain(check(prefix, key)).collect();
    format!("{prefix}{}", encoding().encode(&bytes))
}

fn from_text(
    kind: &'static str,
    prefix: &'static str,
    text: &str,
) -> Result<[u8; KEY_LEN], KeyError> {
    let body = text.trim().strip_prefix(prefix).ok_or(KeyError::Prefix { kind, prefix })?;
    let malformed = KeyError::Malformed { prefix };
    let bytes = encoding().decode(body.as_bytes()).map_err(|_| malformed)?;
    let (key, sum) = bytes.split_first_chunk::<KEY_LEN>().ok_or(malformed)?;
    if sum.len() != CHECK_LEN {
        return Err(malformed);
    }
    if sum != check(prefix, key) { Err(KeyError::Mistyped) } else { Ok(*key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_being_written_down_and_slips_are_noticed() {
        let secret = SecretKey::from_random([9; KEY_LEN]);
        let text = secret.to_text();
        assert_eq!(text.parse::<SecretKey>().unwrap().to_text(), text);
        let public = secret.public();
        let text = public.to_string();
        assert_eq!(text.len(), PUBLIC_PREFIX.len() + 56);
        assert_eq!(format!(" {text}\n").parse::<PublicKey>(), Ok(public));
        for at in PUBLIC_PREFIX.len()..text.len() {
            let mut slip = text.clone();
            let other = if &text[at..=at] == "q" { "z" } else { "q" };
            slip.replace_range(at..=at, other);
            assert!(slip.parse::<PublicKey>().is_err(), "{slip}");
        }
        assert_eq!(text[..50].parse::<PublicKey>(), Err(KeyError::Malformed { prefix: "dlp1" }));
        assert!(matches!(
            secret.to_text().parse::<PublicKey>(),
            Err(KeyError::Prefix { kind: "public", .. })
        ));
    }

    #[test]
    fn the_public_key_is_x25519_of_the_secret() {
        // Made with `openssl genpkey -algorithm X25519`, printed with `openssl pkey -text`.
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let secret = hex("e8e0daeaeecd631aa8c6d02653951908d7a9887de04f924b1a4b7c5531507b6e");
        let public = hex("b2bc7636b77f31eca9827f67153d6a78274c5a0d458257d140d5d1b79e52cb3a");
        let secret = SecretKey::from_random(secret.try_into().unwrap());
        assert_eq!(secret.public().0.as_slice(), public);
    }
}
