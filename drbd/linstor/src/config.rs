//! How controllers are spoken to: which, with what token, what certificates, and for how long.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig as TlsClient, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use crate::{Controller, LinstorError};

/// Longest file of certificates, keys or a token, in bytes. That of a whole system has 250 KiB.
const FILE_MAX: u64 = 4 << 20;
/// Longest token, in bytes.
const TOKEN_MAX: usize = 4096;
/// Where a system keeps the certificates that it trusts.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// How controllers are spoken to.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Tried in this order; one that cannot be reached is passed over.
    pub controllers: Vec<Controller>,
    /// What the controller knows us by. It is not sent without TLS, but to this machine.
    pub token: Option<Token>,
    /// Certificates, for controllers with TLS.
    pub tls: TlsFiles,
    /// How long anything may take.
    pub timeouts: Timeouts,
}

impl ClientConfig {
    /// Neither token nor certificates, and ordinary timeouts.
    pub fn new(controllers: Vec<Controller>) -> Self {
        let (tls, timeouts) = (TlsFiles::default(), Timeouts::default());
        Self { controllers, token: None, tls, timeouts }
    }
}

/// How long anything may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Until a controller is connected.
    pub connect: Duration,
    /// A whole question.
    pub read: Duration,
    /// A whole change. LINSTOR answers when the nodes have done it.
    pub change: Duration,
}

impl Default for Timeouts {
    /// 5 seconds, 30 seconds and 5 minutes.
    fn default() -> Self {
        let [connect, read, change] = [5, 30, 300].map(Duration::from_secs);
        Self { connect, read, change }
    }
}

/// Files of certificates, as PEM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsFiles {
    /// Who signs the certificates of controllers; without it those that the system trusts.
    pub authorities: Option<PathBuf>,
    /// What we prove to be.
    pub identity: Option<Identity>,
}

/// A certificate and the key that it is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The certificate, and those that lead to one that the controller trusts.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What a controller knows us by. It is never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token that is this text, but for white space around it.
    ///
    /// # Errors
    ///
    /// [`LinstorError::Misuse`] if it is empty, longer than 4096 bytes, or not of visible ASCII.
    pub fn new(text: &str) -> Result<Self, LinstorError> {
        let text = text.trim();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        match text.len() {
            1..=TOKEN_MAX if visible => Ok(Self(text.to_owned())),
            _ => Err(LinstorError::Misuse(
                "this is no token of LINSTOR: give one line of visible characters".to_owned(),
            )),
        }
    }

    /// The token in this file.
    ///
    /// # Errors
    ///
    /// [`LinstorError::File`] if it cannot be read or holds no token.
    pub fn read(path: &Path) -> Result<Self, LinstorError> {
        let what = "the token in";
        let text = String::from_utf8(read(what, path)?);
        text.ok()
            .and_then(|text| Self::new(&text).ok())
            .ok_or_else(|| unusable(what, path, "it is not one line of visible characters"))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn unusable(what: &'static str, path: &Path, why: impl fmt::Display) -> LinstorError {
    LinstorError::File { what, path: path.to_owned(), why: why.to_string() }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, LinstorError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| unusable(what, path, error))?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| unusable(what, path, error))?;
    match bytes.len() as u64 > FILE_MAX {
        true => Err(unusable(what, path, "it is longer than any such file")),
        false => Ok(bytes),
    }
}

/// The certificates in a file, of which there is at least one.
fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, LinstorError> {
    let bytes = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(what, path, "no certificate is in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(what, path, error)),
    }
}

impl TlsFiles {
    /// All that the HTTP client would stop the program for is checked here.
    pub(crate) fn load(&self) -> Result<TlsConfig, LinstorError> {
        let provider = Arc::new(ring::default_provider());
        let roots = self.roots()?;
        let identity = self.identity.as_ref().map(|identity| identity.load(&provider));
        let roots: Vec<_> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Ok(TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&roots))
            .client_cert(identity.transpose()?)
            .unversioned_rustls_crypto_provider(provider)
            .build())
    }

    /// Whom we believe.
    fn roots(&self) -> Result<Vec<CertificateDer<'static>>, LinstorError> {
        if let Some(path) = &self.authorities {
            let what = "the file of certificate authorities";
            let roots = certificates(what, path)?;
            let mut store = RootCertStore::empty();
            for root in &roots {
                store.add(root.clone()).map_err(|error| unusable(what, path, error))?;
            }
            return Ok(roots);
        }
        // The system's own has some that no library knows what to do with.
        let what = "the system's file of certificate authorities";
        match SYSTEM.map(Path::new).into_iter().find(|path| path.exists()) {
            Some(path) => certificates(what, path),
            None => Err(LinstorError::Misuse(
                "this system has no file of certificate authorities: name the one that signs \
                 the certificates of LINSTOR's controllers"
                    .to_owned(),
            )),
        }
    }
}

impl Identity {
    fn load(&self, provider: &Arc<CryptoProvider>) -> Result<ClientCert, LinstorError> {
        let chain = certificates("the file of our certificate", &self.certificate)?;
        let what = "the key of our certificate in";
        let unusable = |why: &dyn fmt::Display| unusable(what, &self.key, why);
        let bytes = read(what, &self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| unusable(&error))?;
        TlsClient::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|error| unusable(&error))?;
        let key = PrivateKey::from_pem(&bytes).map_err(|error| unusable(&error))?;
        let chain: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Ok(ClientCert::new_with_certs(&chain, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_and_never_printed() {
        let token = Token::new(" s3cret\n").expect("it is one");
        assert_eq!(token.header(), "Bearer s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        let long = "x".repeat(TOKEN_MAX + 1);
        for bad in ["", " \n", "two words", "two\nlines", "\u{e4}", "nul\0", &long] {
            let error = Token::new(bad).expect_err(bad).to_string();
            assert!(error.contains("is no token"), "{error}");
        }
    }

    #[test]
    fn a_token_can_be_in_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "s3cret\n").expect("it is written");
        assert_eq!(Token::read(&path).expect("it is one").header(), "Bearer s3cret");
        for bad in [b"".as_slice(), b"\xff", &vec![b'x'; FILE_MAX as usize + 1]] {
            fs::write(&path, bad).expect("it is written");
            let error = Token::read(&path).expect_err("it is none").to_string();
            assert!(error.contains("the token in /"), "{error}");
            assert!(!error.contains('\u{fffd}') && error.len() < 300, "{error}");
        }
        assert!(Token::read(&folder.path().join("none")).is_err());
    }
}
