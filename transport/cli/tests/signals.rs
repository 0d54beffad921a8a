//! Every command ends soon and in order when it is told to, says what is left, and tells the
//! signal by its exit code.

mod common;

use std::{
    fs,
    io::Read,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Pair, command, fake_zfs::Fake, json, noise};
use tempfile::TempDir;

/// Longer than a command may take to end. It says nothing of how long one usually takes.
const SOON: Duration = Duration::from_secs(15);

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn send(child: &Child, signal: &str) {
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

/// Waits for something that another process does.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process takes signals itself yet: before that they end it in silence.
fn takes_signals(child: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    [1, 2, 15].into_iter().all(|signal| caught >> (signal - 1) & 1 == 1)
}

fn start(dir: &Path, arguments: &[&str]) -> Child {
    let mut command = command(dir, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ends a command by a signal; gives its exit code and what it said.
fn stop(mut child: Child, signal: &str) -> (Option<i32>, String) {
    send(&child, signal);
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > SOON {
            child.kill().unwrap();
            panic!("it goes on after {signal}");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code(), said)
}

const SIGNALS: [(&str, i32, &str); 3] =
    [("-HUP", 129, "SIGHUP"), ("-INT", 130, "SIGINT"), ("-TERM", 143, "SIGTERM")];

#[test]
fn every_command_ends_soon_and_says_how_it_goes_on() {
    let pair = Pair::new();
    let dir = pair.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    json(dir, 0, &["push", "file:a.img", "file:r.img"]);
    let committed = json(dir, 0, &["status", "file:r.img"]);
    mkfifo(&dir.join("fifo"));
    // One that listens and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("vm@{}", silent.local_addr().unwrap());
    let key = ["--key", "client.key", "--peer", pair.server.as_str()];
    let dialled = |words: &[&'static str], at: usize| {
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        all.insert(at, remote.clone());
        all.extend(key.map(str::to_owned));
        all
    };
    let local = |words: &[&'static str]| words.iter().map(|word| (*word).to_owned()).collect();
    let commands: Vec<(Vec<String>, &str)> = vec![
        (local(&["map", "zstream:fifo"]), "nothing was changed"),
        (local(&["map", "zstream:-"]), "nothing was changed"),
        (local(&["verify", "file:r.img", "--against", "file:fifo"]), "nothing was changed"),
        (local(&["scrub", "file:r.img", "--limit-rate", "1K"]), "begins anew"),
        (local(&["push", "zstream:fifo", "file:new.img"]), "the next run goes on"),
        (local(&["push", "zstream:-", "file:new.img"]), "the next run goes on"),
        (
            local(&["push", "file:a.img", "file:b.img", "--limit-rate", "1K"]),
            "the next run goes on",
        ),
        (local(&["restore", "file:fifo", "file:c.img"]), "--overwrite"),
        (dialled(&["status"], 1), "nothing was changed"),
        (dialled(&["push", "file:a.img"], 2), "the next run goes on"),
        (dialled(&["pull", "file:d.img"], 1), "the next run goes on"),
        (dialled(&["restore", "file:e.img"], 1), "--overwrite"),
    ];
    for (arguments, says) in commands {
        let arguments: Vec<&str> =
            ["--json"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        for (signal, code, name) in SIGNALS {
            let mut child = start(dir, &arguments);
            let stdout = child.stdout.take().unwrap();
            wait_for("taking signals", || takes_signals(&child));
            // In the middle of what it does.
            thread::sleep(Duration::from_millis(200));
            let (exit, said) = stop(child, signal);
            assert_eq!(exit, Some(code), "{arguments:?} {signal}: {said}");
            let line = format!("driftline: stopped by {name}: ");
            let told: Vec<&str> =
                said.lines().filter(|line| line.starts_with("driftline")).collect();
            assert!(told.len() == 1 && told[0].starts_with(&line), "{arguments:?}: {said}");
            assert!(told[0].contains(says), "{arguments:?}: {said}");
            let object = std::io::read_to_string(stdout).unwrap();
            if arguments[1] == "map" {
                assert_eq!(object, "", "what a map is cut off by could be in the middle of it");
                continue;
            }
            let object: serde_json::Value = serde_json::from_str(&object).unwrap();
            assert_eq!(object["error"]["reason"], "stopped", "{arguments:?}: {object}");
            assert!(object["error"]["detail"].as_str().unwrap().contains(says), "{object}");
        }
    }
    assert_eq!(json(dir, 0, &["status", "file:r.img"]), committed);
    json(dir, 0, &["verify", "file:r.img"]);
}

#[test]
fn a_server_ends_by_each_signal() {
    for (signal, ..) in SIGNALS {
        let pair = Pair::new();
        drop(pair.serve_vm());
        let child = start(pair.path(), &["serve", "--config", "serve.toml"]);
        wait_for("taking signals", || takes_signals(&child));
        let (exit, said) = stop(child, signal);
        assert_eq!(exit, Some(0), "{said}");
    }
}

/// A `zfs` whose stream stops in the middle: for a while, or for ever.
fn slow_zfs(seconds: &str) -> Fake {
    let fake = Fake::new(&[]);
    let script = fs::read_to_string(fake.path("zfs")).unwrap();
    let stops = format!(
        "head -c 300000 \"stream.${{base:-0}}.$(guid_of \"$last\")\"; : > sending; \
         sleep {seconds}\n    cat \"stream.${{base:-0}}"
    );
    assert!(script.contains("cat \"stream.${base:-0}"));
    fake.write("zfs", &script.replace("cat \"stream.${base:-0}", &stops));
    fake
}

#[test]
fn what_a_run_holds_is_given_back_before_the_process_ends() {
    for (signal, code, _) in SIGNALS {
        let fake = slow_zfs("1");
        let mut push = command(fake.0.path(), &["push", "zfs:tank/vm 1", "file:vm.img"]);
        let push = push.env("DRIFTLINE_ZFS", fake.path("zfs")).stderr(Stdio::piped());
        let child = push.spawn().unwrap();
        wait_for("sending", || fake.path("sending").exists());
        let (exit, said) = stop(child, signal);
        assert_eq!(exit, Some(code), "{said}");
        assert!(!said.contains("not all"), "{said}");
        let calls = fake.calls();
        let count = |verb: &str| calls.lines().filter(|call| call.starts_with(verb)).count();
        assert!(count("hold ") > 0, "{calls}");
        assert_eq!(count("hold "), count("release "), "{calls}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let fake = slow_zfs("600 < /dev/null 2> /dev/null & echo $! > sleeper; wait");
    let mut push = command(fake.0.path(), &["push", "zfs:tank/vm 1", "file:vm.img"]);
    let push = push.env("DRIFTLINE_ZFS", fake.path("zfs")).stderr(Stdio::piped());
    let child = push.spawn().unwrap();
    wait_for("sending", || fake.path("sleeper").exists());
    send(&child, "-TERM");
    // It waits for its source, which hangs.
    thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    let (exit, said) = stop(child, "-INT");
    assert!(started.elapsed() < Duration::from_secs(5), "{said}");
    assert_eq!(exit, Some(130), "{said}");
    assert!(said.contains("SIGINT again: ended at once"), "{said}");
    let sleeper = fs::read_to_string(fake.path("sleeper")).unwrap();
    let _ = Command::new("kill").arg(sleeper.trim()).status();
}

#[test]
fn output_that_cannot_be_written_ends_nothing_and_is_not_called_success() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    noise(&dir.join("a.img"), 1 << 20, 1);
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    // A log that cannot be written is nobody's failure.
    let mut push = command(dir, &["-vv", "push", "file:a.img", "file:r.img"]);
    assert_eq!(push.stderr(full()).status().unwrap().code(), Some(0));
    // Neither is an error that cannot be told: its code stays.
    let mut push = command(dir, &["push", "file:none.img", "file:r.img"]);
    assert_eq!(push.stderr(full()).status().unwrap().code(), Some(1));
    // What only prints has failed if that is lost.
    for arguments in [
        &["status", "file:r.img"][..],
        &["map", "file:a.img"],
        &["incidents"],
        &["verify", "file:r.img"],
        &["scrub", "file:r.img"],
        // And what a program waits for.
        &["--json", "push", "file:a.img", "file:r.img", "-q"],
    ] {
        let mut printing = command(dir, arguments);
        let code = printing.stdout(full()).stderr(full()).status().unwrap().code();
        assert_eq!(code, Some(1), "{arguments:?}");
        // Whoever reads it may have seen enough, as `head` has.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let printed = command(dir, arguments).stdout(writer).stderr(Stdio::piped()).output();
        let printed = printed.unwrap();
        let said = String::from_utf8_lossy(&printed.stderr);
        assert!(printed.status.code() == Some(0) && said.is_empty(), "{arguments:?}: {said}");
    }
}

#[test]
fn a_server_with_a_full_log_serves_on() {
    let pair = Pair::new();
    let server = pair.serve_vm();
    let address = server.address;
    drop(server);
    noise(&pair.path().join("a.img"), 1 << 20, 1);
    // The same address again, which is known without a log.
    let config = fs::read_to_string(pair.path().join("serve.toml")).unwrap();
    let config = config.replace("127.0.0.1:0", &address.to_string());
    fs::write(pair.path().join("serve.toml"), config).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut serve = command(pair.path(), &["-vv", "serve", "--config", "serve.toml"]);
    let mut serve = serve.stderr(full).spawn().unwrap();
    wait_for("listening", || std::net::TcpStream::connect(address).is_ok());
    // Strangers, each of whom is worth a line.
    for _ in 0..100 {
        drop(std::net::TcpStream::connect(address).unwrap());
    }
    json(pair.path(), 0, &pair.push("file:a.img", &format!("vm@{address}")));
    assert_eq!(serve.try_wait().unwrap(), None, "it has ended");
    send(&serve, "-TERM");
    assert_eq!(serve.wait().unwrap().code(), Some(0));
}
