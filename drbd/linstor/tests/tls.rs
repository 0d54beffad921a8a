//! The client and a controller with TLS: who believes whom.

use std::{fs, path::PathBuf, sync::Arc};

use driftline_linstor::{
    Client, ClientConfig, Controller, Identity, LinstorError, Token,
    testing::{Cluster, Fake, Options},
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "tls", name].iter().collect()
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file(name)).expect("it is a certificate")
}

/// A controller that wants to know who we are, or does not.
fn controller(asks_who: bool, token: Option<&str>) -> Fake {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has them");
    let config = match asks_who {
        false => config.with_no_client_auth(),
        true => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate("authority.pem")).expect("it is an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(verifier.build().expect("it has an authority"))
        }
    };
    let key = PrivateKeyDer::from_pem_file(file("controller.key")).expect("it is a key");
    let config = config.with_single_cert(vec![certificate("controller.pem")], key);
    let tls = Some(Arc::new(config.expect("the key is of the certificate")));
    let cluster = Cluster::new().node("alpha").resource("web", &[8]).diskless("web", "alpha");
    Fake::with(cluster, Options { token: token.map(str::to_owned), tls })
}

fn config(fake: &Fake, authority: &str) -> ClientConfig {
    let mut config = ClientConfig::new(Controller::list(&fake.url()).expect("an address"));
    config.tls.authorities = Some(file(authority));
    config
}

fn identity(name: &str) -> Option<Identity> {
    let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
    Some(Identity { certificate, key })
}

fn ask(config: &ClientConfig) -> Result<usize, LinstorError> {
    Client::new(config)?.resources(&[]).map(|resources| resources.len())
}

#[test]
fn a_controller_is_believed_that_our_authority_signed() {
    let fake = controller(false, Some("s3cret"));
    let mut config = config(&fake, "authority.pem");
    config.token = Some(Token::new("s3cret").expect("it is one"));
    assert_eq!(ask(&config).expect("it answers"), 1);

    // By its name, which it proves to have.
    let url = fake.url().replace("127.0.0.1", "localhost");
    config.controllers = Controller::list(&url).expect("an address");
    assert_eq!(ask(&config).expect("it answers"), 1);
}

#[test]
fn a_controller_that_another_authority_signed_is_told_nothing() {
    let fake = controller(false, None);
    let error = ask(&config(&fake, "stranger.pem")).expect_err("it is a stranger");
    let LinstorError::Unreachable { tried } = &error else { panic!("{error}") };
    assert!(tried[0].why.contains("certificate"), "{error}");
    // Nor one without TLS where TLS is spoken.
    let plain = Fake::start(Cluster::new());
    let mut config = config(&fake, "authority.pem");
    let url = plain.url().replace("linstor://", "https://");
    config.controllers = Controller::list(&url).expect("an address");
    assert!(matches!(ask(&config), Err(LinstorError::Unreachable { .. })));
    assert!(fake.asked().is_empty() && plain.asked().is_empty());
}

#[test]
fn a_controller_that_wants_to_know_who_we_are_is_told() {
    let fake = controller(true, None);
    let mut config = config(&fake, "authority.pem");
    let error = ask(&config).expect_err("we did not say who we are");
    assert!(matches!(error, LinstorError::Unreachable { .. }), "{error}");
    assert!(fake.asked().is_empty());
    config.tls.identity = identity("client");
    assert_eq!(ask(&config).expect("it knows us"), 1);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let fake = controller(true, None);
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("it is written");
        path
    };
    let broken =
        put("broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let key = fs::read(file("client.key")).expect("it is there");
    let cut_key = put("cut.key", &key[..key.len() / 2]);
    let (client, good) = (file("client.pem"), file("client.key"));
    let none = folder.path().join("none");
    for authorities in [&none, &put("empty.pem", b""), &broken, &good] {
        let mut config = config(&fake, "authority.pem");
        config.tls.authorities = Some(authorities.clone());
        let error = ask(&config).expect_err("it has no authority").to_string();
        let named = format!("the file of certificate authorities {}", authorities.display());
        assert!(error.starts_with(&named), "{error}");
    }
    for (certificate, key, named) in [
        (&none, &good, &none),
        (&good, &good, &good),
        (&client, &none, &none),
        (&client, &client, &client),
        (&client, &cut_key, &cut_key),
        // A key, but of another certificate.
        (&client, &file("controller.key"), &file("controller.key")),
        (&broken, &good, &good),
    ] {
        let mut config = config(&fake, "authority.pem");
        let (certificate, key) = (certificate.clone(), key.clone());
        config.tls.identity = Some(Identity { certificate, key });
        let error = ask(&config).expect_err("it proves nothing").to_string();
        assert!(
            error.contains(&format!("certificate {}", named.display()))
                || error.contains(&format!("certificate in {}", named.display())),
            "{error}"
        );
    }
    assert!(fake.asked().is_empty());
}
