//! The handle against a `zfs` of our own: a shell script that each test writes.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::*;

/// A folder with a `zfs` that runs this script. It writes its arguments, one to a line and
/// followed by an empty one, to the file `calls`.
struct Fake {
    folder: TempDir,
    zfs: Zfs,
}

impl Fake {
    fn new(script: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("zfs");
        let text = format!(
            "#!/bin/sh\ncd '{}'\n{{ printf '%s\\n' \"$@\"; echo; }} >> calls\n{script}\n",
            folder.path().display()
        );
        install(&path, &text);
        Self { zfs: Zfs::with_command(path), folder }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    /// The arguments of each call.
    fn calls(&self) -> Vec<Vec<String>> {
        let calls = self.file("calls");
        calls
            .split_terminator("\n\n")
            .map(|call| call.lines().map(str::to_owned).collect())
            .collect()
    }
}

/// Written by another process: this one never has it open for writing, which a child forked in
/// that moment by another test would inherit, and the script could not run.
fn install(path: &Path, text: &str) {
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

fn point(name: &str) -> PointName {
    name.parse().unwrap()
}

fn request() -> SendRequest {
    SendRequest::full(point("tank/vm 1@a:b"))
}

#[test]
fn output_is_returned_and_messages_are_in_english() {
    let fake = Fake::new("echo \"$LC_ALL\"; echo ignored >&2; read x || echo closed");
    assert_eq!(fake.zfs.run(["list"]).unwrap(), "C\nclosed\n");
}

#[test]
fn a_failure_carries_the_command_and_all_that_it_said() {
    let fake = Fake::new("echo out; echo \"cannot open '$2'\" >&2; echo again >&2; exit 3");
    let error = fake.zfs.run(["get", "tank/my vm"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "zfs get 'tank/my vm' failed, exit status: 3: cannot open 'tank/my vm'; again"
    );
}

#[test]
fn a_silent_or_killed_command_is_an_error_too() {
    let error = Fake::new("exit 1").zfs.run(["x"]).unwrap_err().to_string();
    assert_eq!(error, "zfs x failed, exit status: 1: it said nothing");
    let error = Fake::new("kill -9 $$").zfs.run(["x"]).unwrap_err().to_string();
    assert!(error.contains("signal: 9"), "{error}");
}

/// More than a pipe holds, on both: a sender that waits for its errors to be read would never
/// end.
#[test]
fn much_stderr_neither_blocks_nor_is_cut_below_its_limit() {
    let fake = Fake::new(
        "i=0; while [ $i -lt 20 ]; do head -c 5000 /dev/zero | tr '\\0' x >&2; i=$((i+1)); done
         head -c 300000 /dev/zero; exit 1",
    );
    let mut sending = fake.zfs.send(&request()).unwrap();
    assert_eq!(sending.read_to_end(&mut Vec::new()).unwrap(), 300_000);
    let Err(ZfsError::Failed { stderr, .. }) = sending.finish() else { panic!("it must fail") };
    let kept = "x".repeat(64 << 10);
    assert_eq!(stderr, format!("{kept}\n({} more bytes were not kept)", 100_000 - (64 << 10)));
}

#[test]
fn names_arrive_as_one_argument_each() {
    let fake = Fake::new("");
    let (a, b) = (point("tank/vm 1@a:b c"), point("tank/vm 1#a:b c"));
    fake.zfs.snapshot(&[a.clone(), point("tank/x@y")]).unwrap();
    fake.zfs.bookmark(&a, &b).unwrap();
    fake.zfs.destroy(&[a.clone(), b.clone()]).unwrap();
    let mut sending = fake.zfs.send(&SendRequest { base: Some(b.clone()), ..request() }).unwrap();
    sending.read_to_end(&mut Vec::new()).unwrap();
    sending.finish().unwrap();
    fake.zfs.resume("1-abc-d").unwrap().finish().unwrap();
    assert!(fake.zfs.exists(b).unwrap() && fake.zfs.exists(a).unwrap());
    assert!(fake.zfs.exists("tank/vm 1".parse::<DatasetName>().unwrap()).unwrap());
    let expected: [&[&str]; 9] = [
        &["snapshot", "tank/vm 1@a:b c", "tank/x@y"],
        &["bookmark", "tank/vm 1@a:b c", "tank/vm 1#a:b c"],
        &["destroy", "tank/vm 1@a:b c"],
        &["destroy", "tank/vm 1#a:b c"],
        &["send", "-L", "-c", "-i", "tank/vm 1#a:b c", "tank/vm 1@a:b"],
        &["send", "-t", "1-abc-d"],
        &["list", "-H", "-o", "name", "-t", "bookmark", "tank/vm 1#a:b c"],
        &["list", "-H", "-o", "name", "-t", "snapshot", "tank/vm 1@a:b c"],
        &["list", "-H", "-o", "name", "-t", "filesystem,volume", "tank/vm 1"],
    ];
    assert_eq!(fake.calls(), expected);
}

#[test]
fn only_a_missing_name_is_no_error() {
    let missing = Fake::new(
        "[ $1 = destroy ] || echo \"cannot open '$7': dataset does not exist\" >&2; exit 1",
    );
    assert!(!missing.zfs.exists(point("tank/a@b")).unwrap());
    missing.zfs.destroy(&[point("tank/a@b")]).unwrap();
    let denied = Fake::new("echo 'Unable to open /dev/zfs: Permission denied.' >&2; exit 1");
    assert!(denied.zfs.exists(point("tank/a@b")).unwrap_err().to_string().contains("denied"));
    let held = Fake::new("[ $1 = list ] && exit; echo \"'$2' is held\" >&2; exit 1");
    let stay = held.zfs.destroy(&[point("tank/a@b"), point("tank/a#c")]).unwrap();
    let why = |i: usize| stay[i].why.clone();
    assert!(why(0).ends_with("'tank/a@b' is held"), "{stay:?}");
    assert!(why(1).ends_with("'tank/a#c' is held"), "each is tried: {stay:?}");
}

/// A chain of clones, and one of a ZFS that says that a clone is its own.
#[test]
fn origins_are_followed_so_far_and_no_further() {
    let fake = Fake::new(
        "for last; do :; done
         [ \"$last\" != tank/gone ] || { echo \"cannot open '$last': dataset does not exist\" >&2; exit 1; }
         case $last in tank/c) origin=tank/b@1 ;; tank/b) origin='tank/a b@2 x' ;; \
             tank/round) origin=tank/round@1 ;; *) origin=- ;; esac
         printf '%s\\tvolume\\t7\\t4096\\t4096\\t%s\\t0\\toff\\t-\\t-\\t-\\n' \"$last\" \"$origin\"",
    );
    let origins = |name: &str, max| {
        let name: DatasetName = name.parse().unwrap();
        let origins = fake.zfs.origins(&name, max).unwrap();
        origins.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(origins("tank/c", 16), ["tank/b", "tank/a b"]);
    assert_eq!(origins("tank/c", 1), ["tank/b"]);
    assert_eq!(origins("tank/a b", 16), [""; 0]);
    assert_eq!(origins("tank/gone", 16), [""; 0]);
    assert_eq!(origins("tank/round", 3), ["tank/round"; 3]);
    let broken = Fake::new("echo tank/c");
    assert!(broken.zfs.origins(&"tank/c".parse().unwrap(), 16).is_err());
}

#[test]
fn what_is_never_done_calls_nothing() {
    let fake = Fake::new("");
    // To the command it would be all snapshots from a to b.
    assert!(fake.zfs.destroy(&[point("tank/a@a%b")]).is_err());
    assert!(fake.zfs.snapshot(&[point("tank/a#b")]).is_err());
    assert!(fake.zfs.hold(&[point("tank/a#b")]).is_err());
    assert!(fake.zfs.bookmark(&point("tank/a@b"), &point("tank/a@c")).is_err());
    fake.zfs.snapshot(&[]).unwrap();
    fake.zfs.destroy(&[]).unwrap();
    fake.zfs.hold(&[]).unwrap().release().unwrap();
    assert!(!fake.folder.path().join("calls").exists());
}

#[test]
fn what_stays_is_said_with_what_keeps_it() {
    let fake = Fake::new(
        "for last; do :; done
         case \"$1 $5 $last\" in
         'get clones tank/a@b') echo tank/x,tank/y ;;
         'get clones '*) echo - ;;
         holds*'tank/a@c') printf 'tank/a@c\\tone\\tMon\\ntank/a@c\\ttwo\\tMon\\n' ;;
         destroy*'tank/a@d'|list*) ;;
         *) echo 'cannot destroy' >&2; exit 1 ;;
         esac",
    );
    let points = ["tank/a@b", "tank/a@c", "tank/a@d", "tank/a#e"].map(point);
    let stay = fake.zfs.destroy(&points).unwrap();
    let stay: Vec<(String, &str)> =
        stay.iter().map(|stays| (stays.point.to_string(), stays.why.as_str())).collect();
    let [(b, of_b), (c, of_c), (e, of_e)] = &stay[..] else { panic!("{stay:?}") };
    assert_eq!([b, c, e], ["tank/a@b", "tank/a@c", "tank/a#e"]);
    assert!(of_b.contains("origin of the clone tank/x, tank/y"), "{of_b}");
    assert!(of_c.contains("held by one, two: `zfs release TAG tank/a@c`"), "{of_c}");
    assert!(of_e.contains("zfs destroy tank/a#e failed") && of_e.contains("cannot"), "{of_e}");
}

#[test]
fn a_part_of_a_stream_is_thrown_away_only_under_its_own_token() {
    let fake = Fake::new(
        "for last; do :; done
         [ $1 = receive ] || printf '%s\\tvolume\\t7\\t4096\\t4096\\t-\\t0\\toff\\t-\\t-\\t1-ab-c\\n' \"$last\"",
    );
    let name: DatasetName = "tank/copy".parse().unwrap();
    assert!(!fake.zfs.discard_partial(&name, "1-ab-d").unwrap());
    assert!(fake.calls().iter().all(|call| call[0] == "list"));
    assert!(fake.zfs.discard_partial(&name, "1-ab-c").unwrap());
    assert_eq!(fake.calls().last().unwrap(), &["receive", "-A", "tank/copy"]);
}

#[test]
fn holds_end_with_their_owner() {
    let fake = Fake::new("");
    let names = [point("tank/a@x y"), point("tank/b@x y")];
    let first = fake.zfs.hold(&names).unwrap();
    let second = fake.zfs.hold(&names).unwrap();
    drop(first);
    second.release().unwrap();
    let calls = fake.calls();
    let tags: Vec<&str> = calls.iter().map(|call| call[1].as_str()).collect();
    assert_eq!((tags[0], tags[1]), (tags[2], tags[3]));
    assert_ne!(tags[0], tags[1]);
    let verbs: Vec<&str> = calls.iter().map(|call| call[0].as_str()).collect();
    assert_eq!(verbs, ["hold", "hold", "release", "release"]);
    assert!(calls.iter().all(|call| call[2..] == ["tank/a@x y", "tank/b@x y"]));
}

#[test]
fn a_hold_that_fails_releases_what_it_got() {
    let fake = Fake::new("[ $1 = release ] || { echo 'cannot hold tank/b@x' >&2; exit 1; }");
    let error = fake.zfs.hold(&[point("tank/a@x"), point("tank/b@x")]).unwrap_err();
    assert!(error.to_string().ends_with("cannot hold tank/b@x"), "{error}");
    let calls = fake.calls();
    assert_eq!((calls.len(), calls[1][0].as_str()), (2, "release"));
    assert_eq!(calls[0][1], calls[1][1]);
}

#[test]
fn a_stream_is_whole_only_if_its_sender_says_so() {
    let good = Fake::new("printf stream; echo 'a warning' >&2");
    let mut sending = good.zfs.send(&request()).unwrap();
    let mut stream = String::new();
    sending.read_to_string(&mut stream).unwrap();
    assert_eq!((stream.as_str(), sending.finish().unwrap().as_str()), ("stream", "a warning"));

    let bad = Fake::new("printf stre; echo 'I/O error' >&2; exit 1");
    let mut sending = bad.zfs.send(&request()).unwrap();
    assert_eq!(sending.read_to_end(&mut Vec::new()).unwrap(), 4);
    let error = sending.finish().unwrap_err().to_string();
    assert_eq!(error, "zfs send -L -c 'tank/vm 1@a:b' failed, exit status: 1: I/O error");
}

/// The child never ends by itself: the shell replaces itself by a writer without end.
#[test]
fn a_sender_that_nobody_wants_is_killed_and_reaped() {
    let fake = Fake::new("echo $$ > pid; exec yes");
    let mut sending = fake.zfs.send(&request()).unwrap();
    sending.read_exact(&mut [0; 4096]).unwrap();
    let process = format!("/proc/{}", fake.file("pid").trim());
    assert!(Path::new(&process).exists());
    drop(sending);
    assert!(!Path::new(&process).exists());

    // And one whose stream is not read to its end does not wait for a reader.
    let mut sending = fake.zfs.send(&request()).unwrap();
    sending.read_exact(&mut [0; 4096]).unwrap();
    assert!(sending.finish().is_err());
}

#[test]
fn a_receiver_gets_all_and_is_asked() {
    let fake = Fake::new("cat > received; echo 'cannot mount' >&2");
    let dataset: DatasetName = "tank/copy 1".parse().unwrap();
    let mut receiving = fake.zfs.receive(&ReceiveRequest::new(dataset)).unwrap();
    let data = "a stream\n".repeat(500_000);
    receiving.write_all(data.as_bytes()).unwrap();
    assert_eq!(receiving.finish().unwrap(), "cannot mount");
    assert!(fake.file("received") == data);
    assert_eq!(fake.calls(), [["receive", "-u", "-s", "tank/copy 1"]]);
}

#[test]
fn a_receiver_that_gives_up_says_why() {
    let fake =
        Fake::new("head -c 100 > received; echo 'destination has been modified' >&2; exit 1");
    let mut receiving = fake.zfs.receive(&ReceiveRequest::new(point("tank/a@b"))).unwrap();
    let failed = std::iter::repeat_with(|| receiving.write_all(&[0; 1 << 16]))
        .find_map(Result::err)
        .expect("it goes on until it fails");
    assert_eq!(failed.kind(), ErrorKind::BrokenPipe);
    let error = receiving.finish().unwrap_err().to_string();
    assert_eq!(
        error,
        "zfs receive -u -s tank/a@b failed, exit status: 1: destination has been modified"
    );
}

/// Killed, not told that the stream ends here: else it would write `ended`.
#[test]
fn a_receiver_that_is_left_is_killed_and_reaped() {
    let fake = Fake::new("echo $$ > pid; read line; echo \"$line\" > got; read line; echo > ended");
    let name: DatasetName = "tank/a".parse().unwrap();
    let mut receiving = fake.zfs.receive(&ReceiveRequest::new(name)).unwrap();
    receiving.write_all(b"first\n").unwrap();
    let got = fake.folder.path().join("got");
    while !fs::read(&got).is_ok_and(|text| text == b"first\n") {
        std::thread::yield_now();
    }
    let process = format!("/proc/{}", fake.file("pid").trim());
    assert!(Path::new(&process).exists());
    drop(receiving);
    assert!(!Path::new(&process).exists());
    assert!(!fake.folder.path().join("ended").exists());
}

/// A pool that is suspended from the start on, as `zpool` says, and does not wait for long.
fn suspended(script: &str) -> Fake {
    let mut fake = Fake::new(script);
    let zpool = fake.folder.path().join("zpool");
    let says = "#!/bin/sh\n[ \"$*\" = 'list -H -o health tank' ] && echo SUSPENDED\n";
    install(&zpool, says);
    let soon = Duration::from_millis(100);
    let long = Duration::from_secs(600);
    fake.zfs.limits = patience::Limits { command: long, quiet: soon, answer: long };
    fake
}

/// It never ends by itself, as `zfs` in the kernel.
const HANGS: &str = "exec tail -f /dev/null";

#[test]
fn a_command_on_a_suspended_pool_is_given_up_with_its_name() {
    let fake = suspended(HANGS);
    let name: DatasetName = "tank/a".parse().unwrap();
    for error in [
        fake.zfs.points(&name).unwrap_err(),
        fake.zfs.property(name.clone(), "guid").unwrap_err(),
        fake.zfs.snapshot(&[point("tank/a@b")]).unwrap_err(),
    ] {
        assert!(matches!(error, ZfsError::Stuck { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("the pool tank is suspended"), "{text}");
        assert!(text.contains("zpool clear tank"), "{text}");
    }
    // What hangs on a pool that is well has its own deadline.
    let mut fake = Fake::new(HANGS);
    fake.zfs.limits = patience::Limits { command: Duration::from_millis(100), ..fake.zfs.limits };
    let late = fake.zfs.run(["list", "tank"]).unwrap_err();
    assert!(matches!(late, ZfsError::Late { .. }), "{late}");
}

/// Who waits for it in the kernel could not be ended any more.
#[test]
fn nothing_begins_on_a_pool_that_the_kernel_calls_suspended() {
    let mut fake = Fake::new("touch begun");
    let states = fake.folder.path().join("kstat");
    fs::create_dir_all(states.join("tank")).unwrap();
    let state = states.join("tank/state");
    fake.zfs.states = states;
    let name: DatasetName = "tank/a".parse().unwrap();
    let stuck = |error: ZfsError| {
        assert!(matches!(error, ZfsError::Stuck { .. }), "{error}");
        assert!(error.to_string().contains("the pool tank is suspended"), "{error}");
    };
    fs::write(&state, "SUSPENDED\n").unwrap();
    stuck(fake.zfs.property(name.clone(), "guid").unwrap_err());
    stuck(fake.zfs.send(&request()).map(drop).unwrap_err());
    stuck(fake.zfs.receive(&ReceiveRequest::new(point("tank/a@b"))).map(drop).unwrap_err());
    stuck(fake.zfs.apart::<()>(&name, "try", || panic!("it began")).unwrap_err());
    assert!(!fake.folder.path().join("begun").exists(), "it began");
    // One that is well, and another than the one that is not.
    fake.zfs.property("back/a".parse::<DatasetName>().unwrap(), "guid").unwrap();
    fs::write(&state, "ONLINE\n").unwrap();
    fake.zfs.property(name.clone(), "guid").unwrap();
    assert_eq!(fake.zfs.apart(&name, "try", || Ok(7)).unwrap(), 7);
}

#[test]
fn a_stream_out_of_or_into_a_suspended_pool_ends_with_its_name() {
    let request = SendRequest::full(point("tank/a@b"));
    let fake = suspended(&format!("printf begun; {HANGS}"));
    let mut sending = fake.zfs.send(&request).unwrap();
    let mut begun = Vec::new();
    let error = sending.read_to_end(&mut begun).unwrap_err();
    assert_eq!((begun.as_slice(), error.kind()), (&b"begun"[..], ErrorKind::TimedOut));
    assert!(error.to_string().contains("the pool tank is suspended"), "{error}");
    // What the sender says of its end is nearer to the cause, and is not waited for.
    let error = sending.finish().unwrap_err();
    assert!(matches!(error, ZfsError::Stuck { .. }), "{error}");

    let mut receiving = fake.zfs.receive(&ReceiveRequest::new(point("tank/a@b"))).unwrap();
    let failed = std::iter::repeat_with(|| receiving.write_all(&[0; 1 << 16]))
        .find_map(Result::err)
        .expect("it takes no more than a pipe holds");
    assert_eq!(failed.kind(), ErrorKind::TimedOut, "{failed}");
    let error = receiving.finish().unwrap_err().to_string();
    assert!(error.contains("the pool tank is suspended"), "{error}");
}

/// A stream that pauses for longer than it is quiet until somebody asks.
#[test]
fn a_slow_stream_of_a_pool_that_is_well_is_waited_for() {
    let mut fake = Fake::new("printf a; sleep 0.3; printf b; sleep 0.3; printf c");
    install(&fake.folder.path().join("zpool"), "#!/bin/sh\necho ONLINE\n");
    fake.zfs.limits.quiet = Duration::from_millis(50);
    let mut sending = fake.zfs.send(&request()).unwrap();
    let mut text = String::new();
    sending.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), sending.finish().unwrap().as_str()), ("abc", ""));
}

#[test]
fn estimates_come_from_a_dry_run() {
    let fake = Fake::new("printf 'full\\t%s\\t4096\\nsize\\t4096\\n' \"$6\"");
    assert_eq!(fake.zfs.send_len(&request()).unwrap(), Some(4096));
    assert_eq!(fake.calls(), [["send", "-nvP", "-L", "-c", "tank/vm 1@a:b"]]);
    let plain = SendRequest { plain: true, ..request() };
    assert_eq!(fake.zfs.send_len(&plain).unwrap(), None);
    assert_eq!(fake.calls().len(), 1);
}

#[test]
fn versions_are_known_without_a_module() {
    let fake = Fake::new("echo zfs-2.3.2-2; echo zfs-kmod-2.3.1-1");
    let (_, kernel) = fake.zfs.versions().unwrap();
    assert_eq!(kernel.unwrap().to_string(), "2.3.1-1");
    let fake = Fake::new("echo zfs-2.3.2-2; echo 'zfs_version_kernel() failed' >&2; exit 1");
    let (userland, kernel) = fake.zfs.versions().unwrap();
    assert_eq!((userland.to_string().as_str(), kernel), ("2.3.2-2", None));
    let old = Fake::new("echo \"unrecognized command '$1'\" >&2; exit 2");
    assert!(old.zfs.versions().unwrap_err().to_string().contains("unrecognized command"));
    let odd = Fake::new("echo 7");
    assert!(odd.zfs.versions().unwrap_err().to_string().contains("but \"7\\n\": check"));
}

#[test]
fn what_a_zfs_can_do_is_asked_once_and_of_no_data_set() {
    let answers = [
        ("echo 'missing snapshot argument' >&2; exit 2", Abilities::ALL),
        ("echo 'The ZFS modules are not loaded.' >&2; exit 1", Abilities::ALL),
        (
            "case $1 in bookmark) echo \"unrecognized command '$1'\" ;; \
             *) echo \"invalid option '${2#-}'\" ;; esac >&2; exit 2",
            Abilities { stored_blocks: false, resume: false, properties: false, bookmarks: false },
        ),
        (
            "[ $1 = receive ] && echo \"invalid option 's'\" >&2; exit 2",
            Abilities { resume: false, properties: false, ..Abilities::ALL },
        ),
    ];
    for (script, expected) in answers {
        let fake = Fake::new(script);
        assert_eq!(fake.zfs.abilities().unwrap(), expected, "{script}");
        assert_eq!(fake.zfs.clone().abilities().unwrap(), expected);
        let asked: [&[&str]; 4] = [
            &["send", "-L", "-c"],
            &["receive", "-s"],
            &["receive", "-x", "canmount"],
            &["bookmark"],
        ];
        assert_eq!(fake.calls(), asked);
    }
    assert!(Zfs::with_command("/nonexistent/zfs").abilities().is_err());
}

#[test]
fn the_command_is_looked_for_in_absolute_folders() {
    let fake = Fake::new("");
    let folder = fake.folder.path();
    let path = env::join_paths([Path::new("."), Path::new("/nonexistent"), folder]).unwrap();
    assert_eq!(search(Some(&path)).unwrap(), folder.join("zfs"));
    fs::rename(folder.join("zfs"), folder.join("other")).unwrap();
    // What is left are the usual places, where this machine may have one.
    match search(Some(&path)) {
        Ok(found) => assert!(COMMAND_FOLDERS.map(Path::new).contains(&found.parent().unwrap())),
        Err(why) => assert_eq!(why, "no command zfs in PATH, /usr/sbin or /sbin"),
    }
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let zfs = Zfs::with_command("/nonexistent/zfs");
    let error = zfs.run(["list"]).unwrap_err().to_string();
    assert!(error.starts_with("zfs list: /nonexistent/zfs cannot be started: No such"), "{error}");
    assert!(zfs.library().is_err());
}

/// Whatever this machine has: a handle, or both reasons and what to do.
#[test]
fn find_never_panics() {
    match Zfs::find() {
        Ok(zfs) => assert!(zfs.command.is_ok() || zfs.library().is_ok()),
        Err(error) => {
            let words = error.to_string();
            assert!(words.starts_with("ZFS is not available here: no command zfs"), "{words}");
            assert!(words.contains("libnvpair") || words.contains("libzfs_core"), "{words}");
            assert!(words.contains("Install zfsutils-linux"), "{words}");
        }
    }
}
