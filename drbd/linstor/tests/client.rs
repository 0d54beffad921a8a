//! The client against a controller that is not there: each call, and each way to fail.

use std::{slice, time::Duration};

use driftline_extent::{Explained as _, Reason};
use driftline_linstor::{
    Client, ClientConfig, Controller, Level, LinstorError, OwnNames, OwnSnapshot, Progress,
    ProviderKind, ResourceName, SnapshotName, Timeouts, Token,
    testing::{Cluster, Fake, Fault, Options},
};
use proptest::prelude::*;

fn cluster() -> Cluster {
    Cluster::new()
        .node("alpha")
        .node("beta")
        .pool("alpha", "thin", "LVM_THIN", "vg0/pool0")
        .pool("beta", "thin", "LVM_THIN", "vg1/pool0")
        .pool("alpha", "thick", "LVM", "vg0")
        .resource("web", &[1024, 2048])
        .deploy("web", "alpha", "thin")
        .deploy("web", "beta", "thin")
        .resource("db", &[4096])
        .deploy("db", "beta", "thin")
        .diskless("db", "alpha")
        .resource("log", &[512])
        .deploy("log", "alpha", "thick")
}

fn client(urls: &[&str]) -> Client {
    Client::new(&config(urls)).expect("the configuration is right")
}

fn config(urls: &[&str]) -> ClientConfig {
    ClientConfig::new(Controller::list(&urls.join(",")).expect("these are addresses"))
}

fn name(text: &str) -> ResourceName {
    text.parse().expect("it is a name")
}

fn own(unix_ms: u64) -> OwnSnapshot {
    OwnNames::new([0x48, 0xc3, 0xa6, 0x3f]).snapshot(unix_ms)
}

/// An address where nobody is any more.
fn nobody() -> String {
    Fake::start(Cluster::new()).url()
}

#[test]
fn what_there_is_is_listed() {
    let fake = Fake::start(cluster());
    let client = client(&[&fake.url()]);
    assert_eq!(client.version().expect("it answers").rest_api_version, "1.28.0");

    let definitions = client.resource_definitions(&[]).expect("it answers");
    let names: Vec<_> = definitions.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["db", "log", "web"]);
    let web = client.resource_definitions(&[name("WEB")]).expect("it answers");
    let sizes: Vec<_> = web[0].volume_definitions.iter().map(|v| v.size_kib).collect();
    assert_eq!((web.len(), sizes), (1, vec![1024, 2048]));

    let resources = client.resources(&[name("db"), name("log")]).expect("it answers");
    let places: Vec<_> =
        resources.iter().map(|r| (r.name.as_str(), r.node_name.as_str())).collect();
    assert_eq!(places, [("db", "beta"), ("db", "alpha"), ("log", "alpha")]);
    let volume = &resources[0].volumes[0];
    assert_eq!((volume.volume_number, &volume.provider_kind), (0, &ProviderKind::LvmThin));
    assert_eq!(volume.usable_size_kib, Some(4096));
    let layer = resources[0].layer_object.as_ref().expect("it has layers");
    let drbd = layer.drbd.as_ref().expect("it is of DRBD");
    assert_eq!(drbd.drbd_volumes[0].backing_device.as_deref(), Some("/dev/vg1/db_00000"));
    assert_eq!(layer.children[0].kind, "STORAGE");
    assert_eq!(client.resources(&[name("none")]).expect("it answers"), []);

    let pools = client.storage_pools(&["beta".parse().expect("a name")]).expect("it answers");
    assert_eq!(pools.len(), 1);
    assert_eq!(pools[0].props["StorDriver/StorPoolName"], "vg1/pool0");
    assert_eq!(client.storage_pools(&[]).expect("it answers").len(), 3);
}

#[test]
fn a_snapshot_is_taken_waited_for_listed_and_deleted() {
    let fake = Fake::start(cluster().looks(3));
    let (client, web, own) = (client(&[&fake.url()]), name("web"), own(1_000));
    assert_eq!(client.create_snapshots(slice::from_ref(&web), &own).expect("it is taken"), []);

    let mut rounds = Vec::new();
    let pause = |round| {
        rounds.push(round);
        true
    };
    let snapshot = client.wait_successful(&web, own.name(), pause).expect("it is successful");
    assert_eq!(rounds, [1, 2, 3]);
    assert_eq!(snapshot.progress(), Progress::Successful);
    assert_eq!(snapshot.nodes, ["alpha", "beta"]);
    let on = ["Alpha", "gamma"].map(|node| snapshot.is_on(&node.parse().expect("a name")));
    assert_eq!(on, [true, false]);
    let sizes: Vec<_> = snapshot.volume_definitions.iter().map(|v| v.size_kib).collect();
    assert_eq!(sizes, [1024, 2048]);
    assert!(snapshot.snapshots.iter().all(|node| node.create_timestamp.is_some()));

    assert_eq!(client.snapshots(&web).expect("it answers"), slice::from_ref(&snapshot));
    assert_eq!(client.delete_snapshot(&web, &own).expect("it is deleted"), []);
    assert_eq!(client.snapshot(&web, own.name()).expect("it answers"), None);
    // What is gone need not be deleted, but is told.
    let warnings = client.delete_snapshot(&web, &own).expect("it is gone");
    assert_eq!((warnings.len(), warnings[0].level()), (1, Level::Warning));
    assert!(warnings[0].message.contains("There is no snapshot"), "{}", warnings[0]);
}

#[test]
fn that_a_snapshot_is_gone_is_no_error_to_its_deletion_however_it_is_told() {
    let fake = Fake::start(cluster());
    let (client, web) = (client(&[&fake.url()]), name("web"));
    let told = |code: u64| {
        let number = (0xC000_0000_030C_0000 | code).cast_signed();
        format!(r#"[{{"ret_code":{number},"message":"not there"}}]"#)
    };
    fake.fail("/snapshots/", Fault::Answer(404, told(313)));
    assert_eq!(client.delete_snapshot(&web, &own(1)).expect("it is gone").len(), 1);
    fake.fail("/snapshots/", Fault::Answer(404, told(301)));
    let error = client.delete_snapshot(&web, &own(1)).expect_err("the resource is gone");
    assert!(error.to_string().contains("LINSTOR refused it (HTTP status 404): not there"));
}

#[test]
fn snapshots_of_several_resources_are_one_call_and_all_or_none() {
    let fake = Fake::start(cluster());
    let client = client(&[&fake.url()]);
    client.create_snapshots(&[name("web"), name("db")], &own(1)).expect("they are taken");
    assert_eq!(fake.asked()[1..], ["POST /v1/actions/snapshot/multi"]);
    for resource in ["web", "db"] {
        let snapshot = client.wait_successful(&name(resource), own(1).name(), |_| true);
        assert_eq!(snapshot.expect("it is successful").resource_name, resource);
    }
    let error = client.create_snapshots(&[name("web"), name("log")], &own(2));
    let error = error.expect_err("one has no snapshots");
    assert_eq!(error.messages().next().map(|m| m.code()), Some(994));
    fake.change(|cluster| assert_eq!(cluster.snapshot_names("web").len(), 1));

    for (resources, why) in [
        (&[][..], "no resource is named"),
        (&[name("web"), name("db"), name("Web")], "named twice"),
    ] {
        let asked = fake.asked().len();
        let error = client.create_snapshots(resources, &own(3)).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(fake.asked().len(), asked);
    }
}

#[test]
fn refusals_come_with_all_that_linstor_says() {
    let fake = Fake::start(cluster().snapshot("web", own(7).name().as_str()));
    let client = client(&[&fake.url()]);
    let create = |resource: &str, at| client.create_snapshots(&[name(resource)], &own(at));

    let error = create("web", 7).expect_err("it exists");
    assert_eq!(
        error.to_string(),
        "POST /v1/resource-definitions/web/snapshots: LINSTOR refused it (HTTP status 500): \
         'web' has a snapshot 'driftline-48c3a63f-19700101T000000007Z' already.; cause: A test \
         asked for it.; correction: Ask for something else.; see linstor error-reports show \
         5F000000-00000-000000"
    );
    assert_eq!(error.reason(), Reason::Failed);
    let message = error.messages().next().expect("it says something");
    assert_eq!((message.level(), message.code()), (Level::Error, 514));
    for (resource, code) in [("log", 994), ("none", 301)] {
        let error = create(resource, 8).expect_err("it is refused");
        let codes: Vec<_> = error.messages().map(|message| message.code()).collect();
        assert_eq!(codes, [code], "{error}");
    }
    let error = client.snapshots(&name("none")).expect_err("there is none");
    assert!(error.messages().all(|message| message.is_not_found()), "{error}");
    let error = client.snapshot(&name("none"), own(7).name()).expect_err("there is none");
    assert!(matches!(error, LinstorError::Refused { status: 404, .. }), "{error}");

    fake.change(|cluster| cluster.connect("beta", false));
    let error = create("db", 9).expect_err("a satellite is lost");
    assert_eq!(error.messages().next().map(|m| m.code()), Some(995));
}

#[test]
fn an_error_is_one_whatever_status_it_comes_with() {
    let fake = Fake::start(cluster());
    let (client, web) = (client(&[&fake.url()]), name("web"));
    let said = |number: u64| {
        let number = number.cast_signed();
        format!(r#"{{"ret_code":{number},"message":"number {number}"}}"#)
    };
    let [done, warning, error] = [1, 0x8000_0000_0000_0BB8, 0xC000_0000_0000_03E7].map(said);
    fake.fail("/snapshots", Fault::Answer(201, format!("[{done},{warning},{error}]")));
    let refused = client.create_snapshots(slice::from_ref(&web), &own(1));
    let refused = refused.expect_err("one of them is an error");
    assert!(matches!(&refused, LinstorError::Refused { messages, .. } if messages.len() == 3));
    assert_eq!(refused.messages().count(), 1);

    fake.fail("/snapshots", Fault::Answer(201, format!("[{done},{warning}]")));
    let warnings = client.create_snapshots(slice::from_ref(&web), &own(1)).expect("it is taken");
    assert_eq!(warnings.iter().map(|m| m.code()).collect::<Vec<_>>(), [3000]);

    // One alone, not in a list.
    fake.fail("/snapshots", Fault::Answer(500, error));
    let refused = client.create_snapshots(slice::from_ref(&web), &own(1));
    assert!(matches!(refused, Err(LinstorError::Refused { status: 500, .. })));
}

#[test]
fn waiting_ends_with_what_became_of_the_snapshot() {
    let fake = Fake::start(cluster().looks(100));
    let (client, web) = (client(&[&fake.url()]), name("web"));
    let wait = |at, pause: &mut dyn FnMut(u32) -> bool| {
        client.wait_successful(&web, own(at).name(), pause).expect_err("it never is")
    };
    client.create_snapshots(slice::from_ref(&web), &own(1)).expect("it is taken");
    let error = wait(1, &mut |round| round < 3);
    assert!(matches!(error, LinstorError::SnapshotPending { .. }), "{error}");
    let looks =
        fake.asked().into_iter().filter(|asked| asked.starts_with("GET") && asked.contains('Z'));
    assert_eq!(looks.count(), 3);

    let error = wait(1, &mut |_| {
        fake.change(|cluster| cluster.connect("beta", false));
        true
    });
    let LinstorError::SnapshotFailed { flag, .. } = &error else { panic!("{error}") };
    assert_eq!(flag, "FAILED_DISCONNECT");

    let error = wait(2, &mut |_| true);
    assert!(matches!(error, LinstorError::SnapshotGone { .. }), "{error}");
    let told = |name: &str, flags: &str| {
        let told = format!(r#"{{"name":"{name}","resource_name":"WEB","flags":[{flags}]}}"#);
        fake.fail("/snapshots/", Fault::Answer(200, told));
    };
    told(own(1).name().as_str(), r#""SUCCESSFUL","DELETE""#);
    let error = wait(1, &mut |_| true);
    assert!(matches!(error, LinstorError::SnapshotGone { .. }), "{error}");
    told(own(2).name().as_str(), r#""SUCCESSFUL""#);
    let error = wait(1, &mut |_| true).to_string();
    assert!(error.contains("it is of another snapshot"), "{error}");
}

#[test]
fn only_own_snapshots_can_be_deleted_at_all() {
    let (names, theirs) = (OwnNames::new([0, 0, 0, 1]), OwnNames::new([0, 0, 0, 2]).snapshot(5));
    let (older, newer) = (names.snapshot(5), names.snapshot(6));
    let fake = Fake::start(
        cluster()
            .snapshot("web", newer.name().as_str())
            .snapshot("web", "manual")
            .snapshot("web", theirs.name().as_str())
            .snapshot("web", older.name().as_str()),
    );
    let (client, web) = (client(&[&fake.url()]), name("web"));
    let found = names.own(&client.snapshots(&web).expect("it answers"));
    assert_eq!(found, [older, newer]);
    for own in &found {
        client.delete_snapshot(&web, own).expect("it is deleted");
    }
    let left = fake.change(|cluster| cluster.snapshot_names("web"));
    assert_eq!(left, ["manual", theirs.name().as_str()]);
}

#[test]
fn what_lacks_a_needed_field_is_told_with_the_request() {
    let fake = Fake::start(cluster());
    let client = client(&[&fake.url()]);
    client.version().expect("it answers");
    for (path, answer, field) in [
        ("view/resources", r#"[{"name":"web"}]"#, "node_name"),
        ("view/resources", r#"[{"name":"web","node_name":"a","volumes":[{}]}]"#, "volume_number"),
        ("view/resources", r#"{"name":"web"}"#, "sequence"),
        ("view/resources", r#"[{"name":1}]"#, "integer `1`"),
        ("view/resources", "", "EOF"),
        ("view/resources", "<html>", "expected value"),
    ] {
        fake.fail(path, Fault::Answer(200, answer.to_owned()));
        let error = client.resources(&[name("web")]).expect_err(answer).to_string();
        let start = "GET /v1/view/resources?resources=web: the answer ";
        assert!(error.starts_with(start) && error.contains(field), "{error}");
    }
    // Layers within layers, without end.
    let deep = format!("[{}", r#"{"name":"web","node_name":"a","layer_object":"#)
        + &r#"{"type":"DRBD","children":["#.repeat(100_000);
    fake.fail("view/resources", Fault::Answer(200, deep));
    let error = client.resources(&[]).expect_err("it is too deep").to_string();
    assert!(error.contains("recursion limit") && error.len() < 500, "{error}");
}

#[test]
fn answers_are_bounded_before_they_are_read() {
    let fake = Fake::start(cluster());
    let (client, web) = (client(&[&fake.url()]), name("web"));
    client.version().expect("it answers");
    let announced = |len: u64| {
        let head = format!("HTTP/1.1 200 \r\ncontent-length: {len}\r\n\r\n");
        Fault::Bytes(head.into_bytes())
    };
    let too_long = |error: LinstorError, most: u64| match error {
        LinstorError::TooLong { limit, .. } => assert_eq!(limit, most),
        error => panic!("{error}"),
    };
    fake.fail("view/resources", announced((64 << 20) + 1));
    too_long(client.resources(&[]).expect_err("it is too long"), 64 << 20);
    fake.fail("/snapshots", announced(u64::MAX));
    let error = client.create_snapshots(slice::from_ref(&web), &own(1));
    too_long(error.expect_err("it is too long"), 1 << 20);
    // Its length is not told, and it has no end.
    fake.fail("/snapshots/", Fault::Endless);
    too_long(client.delete_snapshot(&web, &own(1)).expect_err("it is too long"), 1 << 20);
    // Nor has its head.
    let endless = [b"HTTP/1.1 200 \r\nx: ".as_slice(), &[b'x'; 1 << 20]].concat();
    fake.fail("/snapshots/", Fault::Bytes(endless));
    let error = client.delete_snapshot(&web, &own(1)).expect_err("its head is too long");
    assert!(matches!(error, LinstorError::Lost { .. }), "{error}");
    // What is told of it is short as well.
    fake.fail("view/resources", Fault::Answer(502, "\u{1f980}".repeat(100_000)));
    let error = client.resources(&[]).expect_err("it is no answer of LINSTOR").to_string();
    assert!(error.contains("HTTP status 502") && error.len() < 1500, "{error}");
}

#[test]
fn controllers_are_tried_in_their_order() {
    let (first, second) = (Fake::start(cluster()), Fake::start(cluster()));
    let (dead, first_url, second_url) = (nobody(), first.url(), second.url());
    let client = client(&[&dead, &first_url, &second_url]);
    client.resources(&[]).expect("the second of three answers");
    client.resources(&[]).expect("and is asked first from then on");
    let asked = ["GET /v1/controller/version", "GET /v1/view/resources", "GET /v1/view/resources"];
    assert_eq!(first.asked(), asked);
    assert!(second.asked().is_empty());

    // It moves while nothing is asked: not even a change is lost.
    drop(first);
    let web = name("web");
    client.create_snapshots(slice::from_ref(&web), &own(1)).expect("the third answers");
    assert_eq!(second.asked().len(), 2);
    // It fails in the middle of a question, which is asked again.
    second.fail("/snapshots/", Fault::Cut);
    client.wait_successful(&web, own(1).name(), |_| true).expect("it is asked again");

    drop(second);
    let error = client.resources(&[]).expect_err("nobody is left");
    let LinstorError::Unreachable { tried } = &error else { panic!("{error}") };
    let urls: Vec<_> = tried.iter().map(|attempt| attempt.controller.to_string()).collect();
    let all = [dead, first_url, second_url].map(|url| url.replace("linstor://", "http://"));
    assert_eq!(urls, all);
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[test]
fn a_controller_that_is_none_is_passed_over() {
    let (proxy, fake) = (Fake::start(cluster()), Fake::start(cluster()));
    for fault in [
        Fault::Answer(503, "no upstream".to_owned()),
        Fault::Answer(200, "<html>".to_owned()),
        Fault::Answer(404, "{}".to_owned()),
        Fault::Bytes(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        Fault::Bytes(
            b"HTTP/1.1 302 \r\nlocation: https://evil/\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        Fault::Endless,
        Fault::Cut,
    ] {
        proxy.fail("version", fault.clone());
        let client = client(&[&proxy.url(), &fake.url()]);
        client.version().unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    }
    assert_eq!(fake.asked().len(), 7);
}

#[test]
fn redirects_are_told_and_not_followed() {
    let fake = Fake::start(cluster());
    let client = client(&[&fake.url()]);
    client.version().expect("it answers");
    let redirect = b"HTTP/1.1 302 \r\nlocation: https://alpha:3371/\r\ncontent-length: 0\r\n\r\n";
    fake.fail("view/resources", Fault::Bytes(redirect.to_vec()));
    let error = client.resources(&[]).expect_err("it is elsewhere").to_string();
    assert!(error.contains("sends us to \"https://alpha:3371/\": name that"), "{error}");
}

#[test]
fn a_change_is_never_made_twice() {
    let fake = Fake::start(cluster());
    let (client, web) = (client(&[&fake.url()]), name("web"));
    client.version().expect("it answers");
    fake.fail("/snapshots", Fault::CutAfter);
    let error = client.create_snapshots(slice::from_ref(&web), &own(1)).expect_err("it is cut");
    assert!(error.to_string().contains("it may have been done or not"), "{error}");
    assert_eq!(fake.change(|cluster| cluster.snapshot_names("web").len()), 1);
    let posts = fake.asked().iter().filter(|asked| asked.starts_with("POST")).count();
    assert_eq!(posts, 1);
    fake.fail("/snapshots", Fault::Cut);
    let error = client.create_snapshots(slice::from_ref(&web), &own(2)).expect_err("it is cut");
    assert!(matches!(error, LinstorError::Lost { .. }), "{error}");
    assert_eq!(fake.change(|cluster| cluster.snapshot_names("web").len()), 1);
}

#[test]
fn silence_ends_with_the_time_that_it_may_take() {
    let fake = Fake::start(cluster());
    let mut config = config(&[&fake.url()]);
    let short = Duration::from_millis(50);
    config.timeouts = Timeouts { read: short, change: short, ..Timeouts::default() };
    let client = Client::new(&config).expect("the configuration is right");
    fake.fail("version", Fault::Silence);
    let error = client.version().expect_err("it says nothing").to_string();
    assert!(error.contains("no LINSTOR controller") && error.contains("timeout"), "{error}");
}

#[test]
fn a_token_lets_us_in_and_no_other() {
    let token = "s3cret".to_owned();
    let options = Options { token: Some(token.clone()), ..Options::default() };
    let (fake, other) = (Fake::with(cluster(), options), Fake::start(cluster()));
    let mut config = config(&[&fake.url(), &other.url()]);
    let denied = |config: &ClientConfig, why: &str| {
        let client = Client::new(config).expect("the configuration is right");
        let error = client.resources(&[]).expect_err("it is denied");
        assert_eq!(error.reason(), Reason::Denied);
        let error = error.to_string();
        assert!(error.contains("(HTTP status 401, Unauthorized"), "{error}");
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    };
    denied(&config, "it wants a token, and none was given");
    config.token = Some(Token::new("s3crets").expect("it is one"));
    denied(&config, "is the token right");
    config.token = Some(Token::new(&token).expect("it is one"));
    let client = Client::new(&config).expect("the configuration is right");
    assert_eq!(client.resources(&[]).expect("it is let in").len(), 5);
    assert!(!format!("{client:?} {config:?}").contains("s3cret"));
    // Who denies it is the controller: no other was asked.
    assert!(other.asked().is_empty());

    fake.fail("view/resources", Fault::Answer(403, "[]".to_owned()));
    let error = client.resources(&[]).expect_err("it is denied");
    assert!(matches!(error, LinstorError::Denied { status: 403, token: true, .. }), "{error}");
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    let misuse = |config: &ClientConfig| match Client::new(config) {
        Err(LinstorError::Misuse(why)) => why,
        other => panic!("{other:?}"),
    };
    let mut open = config(&["https://alpha", "linstor://beta"]);
    open.token = Some(Token::new("s3cret").expect("it is one"));
    assert!(misuse(&open).contains("the token would cross the network in clear to http://beta"));
    assert!(misuse(&ClientConfig::new(Vec::new())).contains("no LINSTOR controller is named"));
    let mut plain = config(&["linstor://localhost"]);
    plain.tls.authorities = Some("authority.pem".into());
    assert!(misuse(&plain).contains("no controller with https"));
    // Names that could be parts of paths are none.
    for bad in ["../nodes", "a/b", "a?b", "a%2fb"] {
        assert!(bad.parse::<ResourceName>().is_err() && bad.parse::<SnapshotName>().is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// An answer with some bytes changed, or cut off anywhere, is understood or refused.
    #[test]
    fn no_bytes_of_an_answer_stop_the_client(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
        end in 0usize..400,
    ) {
        let body = r#"[{"name":"web","node_name":"alpha","volumes":[{"volume_number":0,
            "storage_pool_name":"thin","provider_kind":"LVM_THIN","usable_size_kib":-1}]}]"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut bytes = [head.as_bytes(), body.as_bytes()].concat();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(end.max(1));
        let fake = Fake::start(Cluster::new());
        let client = client(&[&fake.url()]);
        fake.fail("view/resources", Fault::Bytes(bytes));
        if let Ok(resources) = client.resources(&[]) {
            prop_assert!(resources.len() <= 1);
        }
    }
}
