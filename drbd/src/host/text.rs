//! The text forms in which DRBD's tools tell of a resource: sections as in drbd.conf, which
//! `drbdsetup show` and `drbdadm dump` write, and the lines of `drbdsetup events2`.
//!
//! Both are the same for DRBD 8.4 and 9, as far as they are read here.

use std::path::PathBuf;

/// How deep sections may lie in each other: the tools write four levels.
const DEPTH_MAX: usize = 16;

/// A section: what stands before its brace, its statements and the sections in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Section {
    pub(super) head: Vec<String>,
    pub(super) statements: Vec<Vec<String>>,
    pub(super) sections: Vec<Self>,
}

impl Section {
    /// The first statement that begins with this word, without it.
    pub(super) fn statement(&self, word: &str) -> Option<&[String]> {
        let found = self.statements.iter().find(|words| words.first().is_some_and(|w| w == word));
        found.map(|words| &words[1..])
    }

    /// The sections that begin with this word.
    pub(super) fn named<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a Self> {
        self.sections.iter().filter(move |s| s.head.first().is_some_and(|w| w == word))
    }
}

/// Reads sections; `None` if they do not close.
pub(super) fn parse_sections(text: &str) -> Option<Section> {
    let mut open = vec![Section::default()];
    let mut words = Vec::new();
    for token in tokens(text) {
        match token {
            Token::Word(word) => words.push(word),
            Token::Mark(';') => {
                let statement = std::mem::take(&mut words);
                open.last_mut()?.statements.push(statement);
            }
            Token::Mark('{') => {
                if open.len() > DEPTH_MAX {
                    return None;
                }
                let head = std::mem::take(&mut words);
                open.push(Section { head, ..Section::default() });
            }
            Token::Mark(_) => {
                // The outermost stays.
                let section = open.pop().filter(|_| !open.is_empty() && words.is_empty())?;
                open.last_mut()?.sections.push(section);
            }
        }
    }
    let outermost = open.pop().filter(|_| open.is_empty() && words.is_empty())?;
    Some(outermost)
}

enum Token {
    Word(String),
    /// A semicolon or a brace.
    Mark(char),
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' | '{' | '}' => tokens.push(Token::Mark(c)),
            '[' | ']' => tokens.push(Token::Word(c.into())),
            '"' => {
                let mut word = String::new();
                while let Some(c) = chars.next().filter(|c| *c != '"') {
                    let c = if c == '\\' { chars.next().unwrap_or(c) } else { c };
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                let is_end = |c: &char| c.is_whitespace() || ";{}[]\"#".contains(*c);
                while let Some(c) = chars.next_if(|c| !is_end(c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    tokens
}

/// Where the metadata of a volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaDisk {
    /// On the backing device itself.
    Internal,
    /// Alone on another device.
    External(PathBuf),
    /// On another device, in its part of this number.
    Indexed(PathBuf, u32),
}

/// A volume of a resource, as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) number: u32,
    pub(super) minor: u32,
    /// `None` where it has no disk.
    pub(super) disk: Option<(PathBuf, MetaDisk)>,
}

/// The volumes of `resource` in the output of `drbdsetup show`, or `None` if that is something
/// else.
pub(super) fn parse_show(text: &str, resource: &str) -> Option<Vec<Shown>> {
    let all = parse_sections(text)?;
    let mut found = all.named("resource").filter(|s| s.head.get(1).is_some_and(|n| n == resource));
    let this = found.next()?.named("_this_host").next()?;
    this.named("volume").map(shown).collect()
}

fn shown(section: &Section) -> Option<Shown> {
    let number = section.head.get(1)?.parse().ok()?;
    let minor = match section.statement("device")? {
        [word, minor] if word == "minor" => minor.parse().ok()?,
        _ => return None,
    };
    let disk = match section.statement("disk") {
        None => None,
        Some([none]) if none == "none" => None,
        Some([disk]) => {
            let meta = match section.statement("meta-disk")? {
                [word] if word == "internal" => MetaDisk::Internal,
                [path] => MetaDisk::External(path.into()),
                [path, open, index, close] if open == "[" && close == "]" => {
                    MetaDisk::Indexed(path.into(), index.parse().ok()?)
                }
                _ => return None,
            };
            Some((disk.into(), meta))
        }
        Some(_) => return None,
    };
    Some(Shown { number, minor, disk })
}

/// The hosts of `resource` in the output of `drbdadm dump`, each with whether its address leads
/// to this machine and nowhere else.
pub(super) fn parse_dump(text: &str, resource: &str) -> Option<Vec<(String, bool)>> {
    let all = parse_sections(text)?;
    let mut found = all.named("resource").filter(|s| s.head.get(1).is_some_and(|n| n == resource));
    let hosts = found.next()?.sections.iter();
    let hosts =
        hosts.filter(|s| s.head.first().is_some_and(|w| w == "on" || w == "stacked-on-top-of"));
    hosts.map(|host| Some((host.head.get(1)?.clone(), is_nowhere(host)))).collect()
}

fn is_nowhere(host: &Section) -> bool {
    let address = host.statement("address").unwrap_or_default();
    address.iter().any(|word| word.starts_with("127.") || word == "::1")
}

/// What a connection of a resource is in, and how its peer's disks are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// What the tools call the peer.
    pub name: String,
    /// `StandAlone`, `Connecting`, `Connected`, …
    pub state: String,
    /// The peer's disk of the volume: `UpToDate`, `DUnknown`, …; empty if it is not told.
    pub disk: String,
    /// How much the peer lacks, in KiB, where it is told.
    pub out_of_sync: Option<u64>,
}

/// The state of a resource and one of its volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub(super) role: String,
    /// Whether its I/O is suspended, by whomever.
    pub(super) suspended: bool,
    pub(super) disk: String,
    pub(super) links: Vec<Link>,
}

/// The state in the output of `drbdsetup events2 --now --statistics RESOURCE`, or `None` if that
/// is something else, or tells nothing of the volume.
pub(super) fn parse_events(text: &str, volume: u32) -> Option<State> {
    let (mut role, mut suspended, mut disk) = (None, false, None);
    let mut links: Vec<Link> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("exists"), Some(kind)) = (words.next(), words.next()) else { return None };
        let fields: Vec<(&str, &str)> = words.filter_map(|word| word.split_once(':')).collect();
        let field = |key| fields.iter().find(|row| row.0 == key).map(|row| row.1);
        let is_volume = || field("volume").and_then(|v| v.parse().ok()) == Some(volume);
        let name = || field("conn-name").or_else(|| field("peer-node-id")).unwrap_or("peer");
        match kind {
            "resource" => {
                role = field("role");
                suspended = field("suspended").is_some_and(|value| value != "no");
            }
            "device" if is_volume() => disk = field("disk"),
            "connection" => links.push(Link {
                name: name().to_owned(),
                state: field("connection")?.to_owned(),
                disk: String::new(),
                out_of_sync: None,
            }),
            "peer-device" if is_volume() => {
                if let Some(link) = links.iter_mut().find(|link| link.name == name()) {
                    link.disk = field("peer-disk").unwrap_or_default().to_owned();
                    link.out_of_sync = field("out-of-sync").and_then(|value| value.parse().ok());
                }
            }
            _ => {}
        }
    }
    Some(State { role: role?.to_owned(), suspended, disk: disk?.to_owned(), links })
}

/// The first number of DRBD's version in `/proc/drbd`.
pub(super) fn parse_version(text: &str) -> Option<u32> {
    text.strip_prefix("version: ")?.split('.').next()?.parse().ok()
}

/// The current UUID in what `drbdsetup get-gi` of DRBD 8.4 prints: UUIDs, then flags, with colons.
pub(super) fn parse_current_uuid(text: &str) -> Option<u64> {
    let (current, _) = text.trim().split_once(':')?;
    let is_uuid = current.len() == 16 && current.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(current).filter(|_| is_uuid).and_then(|uuid| u64::from_str_radix(uuid, 16).ok())
}

/// How many requests to the backing device of this minor are on their way, by the `/proc/drbd`
/// of DRBD 8.4.
pub(super) fn parse_in_flight(text: &str, minor: u32) -> Option<u64> {
    let head = format!("{minor}: ");
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with(&head));
    let (_, numbers) = (lines.next()?, lines.next()?);
    numbers.split_ascii_whitespace().find_map(|word| word.strip_prefix("lo:"))?.parse().ok()
}

/// Whether the I/O of this minor is suspended, by the `/proc/drbd` of DRBD 8.4: the flags at the end
/// of its line begin with `s`, or with `r` for running.
pub(super) fn parse_suspended_84(text: &str, minor: u32) -> Option<bool> {
    let head = format!("{minor}: ");
    let line = text.lines().find(|line| line.trim_start().starts_with(&head))?;
    match line.split_ascii_whitespace().last()?.chars().next()? {
        's' => Some(true),
        'r' => Some(false),
        _ => None,
    }
}

/// The same in the output of `drbdsetup events2 --now`, which tells of each resource.
pub(super) fn parse_suspended(text: &str, minor: u32) -> Option<bool> {
    let lines = |kind: &'static str| {
        text.lines().filter_map(move |line| {
            let rest = line.strip_prefix("exists ")?.strip_prefix(kind)?.strip_prefix(' ')?;
            Some(rest.split_ascii_whitespace().filter_map(|word| word.split_once(':')).collect())
        })
    };
    let has = |line: &Vec<(&str, &str)>, key: &str, value: &str| line.contains(&(key, value));
    let field = |line: Vec<(&'_ str, &'_ str)>, key: &str| {
        line.iter().find(|row| row.0 == key).map(|row| row.1.to_owned())
    };
    let minor = minor.to_string();
    let device = lines("device").find(|line| has(line, "minor", &minor))?;
    let name = field(device, "name")?;
    let resource = lines("resource").find(|line| has(line, "name", &name))?;
    Some(field(resource, "suspended")? != "no")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_that_do_not_close_are_none() {
        for text in ["a {", "}", "a { b }", "a", "a { b; } c", &"a {".repeat(1000)] {
            assert_eq!(parse_sections(text), None, "{text}");
        }
        let section = parse_sections("a \"b \\\" c\" { d e [1]; # f\n g { } }").unwrap();
        assert_eq!(section.sections[0].head, ["a", "b \" c"]);
        assert_eq!(section.sections[0].statements, [["d", "e", "[", "1", "]"]]);
        assert_eq!(section.sections[0].named("g").count(), 1);
    }

    /// `drbdsetup show` of DRBD 8.4 as its source writes it, with every kind of metadata.
    #[test]
    fn volumes_are_found_in_what_8_4_shows() {
        let text = "resource r0 {\n    options {\n    }\n    net {\n    }\n    _remote_host {\n        \
             address\t\t\tipv4 10.0.0.2:7789;\n    }\n    _this_host {\n        address\t\t\tipv4 \
             10.0.0.1:7789;\n        volume 0 {\n            device\t\t\tminor 1;\n            \
             disk\t\t\t\"/dev/lab/a\";\n            meta-disk\t\t\tinternal;\n            disk {\n  \
             size            \t128s; # bytes\n            }\n        }\n        volume 7 {\n            \
             device\t\t\tminor 12;\n            disk\t\t\t\"/dev/lab/b\";\n            \
             meta-disk\t\t\t\"/dev/lab/m\" [ 3 ];\n        }\n        volume 8 {\n            \
             device\t\t\tminor 13;\n            disk\t\t\t\"/dev/zvol/tank/c d\";\n            \
             meta-disk\t\t\t\"/dev/lab/m2\";\n        }\n        volume 9 {\n            \
             device\t\t\tminor 14;\n        }\n    }\n}\n";
        let meta = |path: &str| PathBuf::from(path);
        let expected = [
            (0, 1, Some((meta("/dev/lab/a"), MetaDisk::Internal))),
            (7, 12, Some((meta("/dev/lab/b"), MetaDisk::Indexed(meta("/dev/lab/m"), 3)))),
            (8, 13, Some((meta("/dev/zvol/tank/c d"), MetaDisk::External(meta("/dev/lab/m2"))))),
            (9, 14, None),
        ];
        let expected = expected.map(|(number, minor, disk)| Shown { number, minor, disk });
        assert_eq!(parse_show(text, "r0").unwrap(), expected);
        assert_eq!(parse_show(text, "r1"), None);
        assert_eq!(parse_show("r0: No such resource\n", "r0"), None);
    }

    /// The same of DRBD 9, whose names are quoted and whose peers stand beside this host.
    #[test]
    fn volumes_are_found_in_what_9_shows() {
        let text = "resource \"r0\" {\n    _this_host {\n        node-id\t\t\t0;\n        volume 0 {\n\
             device\t\t\tminor 0;\n disk\t\t\t\"/dev/vg/r0\";\n meta-disk\t\t\tinternal;\n disk {\n \
             al-extents 67;\n }\n }\n }\n connection {\n _peer_node_id 1;\n path {\n _this_host \
             ipv4 10.0.0.1:7000;\n _remote_host ipv4 10.0.0.2:7000;\n }\n net {\n _name \"b\";\n }\n \
             volume 0 {\n disk {\n }\n }\n }\n}\n";
        let disk = Some((PathBuf::from("/dev/vg/r0"), MetaDisk::Internal));
        assert_eq!(parse_show(text, "r0").unwrap(), [Shown { number: 0, minor: 0, disk }]);
    }

    #[test]
    fn a_peer_that_is_nowhere_is_told_from_one_that_is_somewhere() {
        let text = "# /etc/drbd.conf\nresource r0 {\n    on source {\n        volume 0 {\n            \
             device       /dev/drbd1 minor 1;\n            disk         /dev/lab/r0;\n            \
             meta-disk    internal;\n        }\n        address          ipv4 127.0.0.1:7789;\n    }\n    \
             on nobody {\n        address          ipv4 127.0.0.2:7789;\n    }\n    on peer {\n        \
             address          ipv6 [fe80::2]:7789;\n    }\n    net {\n        protocol           C;\n    }\n}\n";
        let hosts = parse_dump(text, "r0").unwrap();
        let hosts: Vec<(&str, bool)> = hosts.iter().map(|(n, is)| (n.as_str(), *is)).collect();
        assert_eq!(hosts, [("source", true), ("nobody", true), ("peer", false)]);
    }

    #[test]
    fn events_tell_the_state() {
        let text = "exists resource name:r0 role:Primary suspended:user write-ordering:flush\n\
             exists connection name:r0 peer-node-id:1 conn-name:b local:ipv4:10.0.0.1:7000 \
             peer:ipv4:10.0.0.2:7000 connection:Connected role:Secondary congested:no\n\
             exists device name:r0 volume:1 minor:2 disk:Diskless size:4 lower-pending:9\n\
             exists device name:r0 volume:0 minor:1 disk:UpToDate size:98236 lower-pending:0\n\
             exists peer-device name:r0 peer-node-id:1 conn-name:b volume:0 \
             replication:Established peer-disk:UpToDate resync-suspended:no out-of-sync:12\n\
             exists -\n";
        let state = parse_events(text, 0).unwrap();
        assert_eq!((state.role.as_str(), state.disk.as_str()), ("Primary", "UpToDate"));
        assert!(state.suspended);
        let link = Link {
            name: "b".into(),
            state: "Connected".into(),
            disk: "UpToDate".into(),
            out_of_sync: Some(12),
        };
        assert_eq!(state.links, [link]);
        assert_eq!(parse_events(text, 3), None);
        assert_eq!(parse_events("r0: No such resource\n", 0), None);
        assert_eq!(parse_events("", 0), None);
    }

    #[test]
    fn proc_tells_what_is_on_its_way() {
        let text = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: 2A5DFCD31AE4EBF93C0E357 \n\n \
             1: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----\n    ns:0 nr:0 \
             dw:8192 dr:2032 al:2 bm:0 lo:3 pe:0 ua:0 ap:5 ep:1 wo:f oos:8192\n\n11: cs:Unconfigured\n";
        assert_eq!(parse_version(text), Some(8));
        assert_eq!(parse_in_flight(text, 1), Some(3));
        assert_eq!([parse_in_flight(text, 11), parse_in_flight(text, 2)], [None, None]);
        assert_eq!(parse_version("GIT-hash: x"), None);
        let uuids =
            "83D57F19E9CF2BF7:0000000000000004:0000000000000000:0000000000000000:1:1:1:0:0:0\n";
        assert_eq!(parse_current_uuid(uuids), Some(0x83D5_7F19_E9CF_2BF7));
        for bad in ["", "Device has no disk", "+3D57F19E9CF2BF7:0", "83D57F19:0"] {
            assert_eq!(parse_current_uuid(bad), None, "{bad}");
        }
    }

    /// What drbd-utils 9.22 says of DRBD 8.4.11: `tests/recorded/README.md`.
    macro_rules! recorded {
        ($name:literal) => {
            include_str!(concat!("../../tests/recorded/", $name))
        };
    }

    #[test]
    fn recorded_resources_are_understood() {
        let shown = |minor, disk: &str, meta| {
            let disk = Some((PathBuf::from(disk), meta));
            [Shown { number: 0, minor, disk }]
        };
        let tracker = shown(1, "/dev/lab/thin1", MetaDisk::Internal);
        for text in [recorded!("show-tracker"), recorded!("show-connecting")] {
            assert_eq!(parse_show(text, "thin1").unwrap(), tracker);
        }
        let all = recorded!("show-all");
        assert_eq!(parse_show(all, "thin1").unwrap(), tracker);
        let zvol = shown(3, "/dev/zvol/tank/z1", MetaDisk::Internal);
        assert_eq!(parse_show(all, "z1").unwrap(), zvol);
        let external = MetaDisk::External("/dev/lab/ext1-meta".into());
        let external = shown(4, "/dev/lab/ext1", external);
        assert_eq!(parse_show(recorded!("show-external"), "ext1").unwrap(), external);
        assert_eq!(parse_show(all, "nosuch"), None);

        let hosts = parse_dump(recorded!("dump-tracker"), "thin1").unwrap();
        assert_eq!(hosts, [("source".to_owned(), true), ("nobody".to_owned(), true)]);
        let hosts = parse_dump(recorded!("dump-external"), "ext1").unwrap();
        assert_eq!(hosts, [("source".to_owned(), true)]);
    }

    #[test]
    fn recorded_states_are_understood() {
        let peer = |state: &str, out_of_sync| {
            let (name, disk) = ("peer".to_owned(), "DUnknown".to_owned());
            vec![Link { name, state: state.to_owned(), disk, out_of_sync: Some(out_of_sync) }]
        };
        for (text, suspended, state, out_of_sync) in [
            (recorded!("events2-tracker"), false, "StandAlone", 0),
            (recorded!("events2-suspended"), true, "StandAlone", 400),
            (recorded!("events2-connecting"), false, "Connecting", 0),
        ] {
            let (role, disk) = ("Primary".to_owned(), "UpToDate".to_owned());
            let mut links = peer(state, out_of_sync);
            if state == "StandAlone" {
                // Of a connection that it never had it tells no name but this.
                links[0].name = "0".to_owned();
            }
            assert_eq!(parse_events(text, 0).unwrap(), State { role, suspended, disk, links });
        }
        assert_eq!(parse_events(recorded!("events2-nothing"), 0), None);

        let text = recorded!("proc-suspended");
        assert_eq!(parse_version(text), Some(8));
        let minors = [1, 2, 3, 4, 5].map(|minor| parse_in_flight(text, minor));
        assert_eq!(minors, [Some(0), Some(0), Some(0), Some(0), None]);
        assert_eq!(parse_in_flight(recorded!("proc-connecting"), 1), Some(0));
        let suspended = [1, 2, 5].map(|minor| parse_suspended_84(text, minor));
        assert_eq!(suspended, [Some(true), Some(false), None]);
        assert_eq!(parse_suspended_84(recorded!("proc-connecting"), 1), Some(false));
        assert_eq!(parse_suspended_84(" 1: cs:Unconfigured", 1), None);
        let [held, goes_on] = [recorded!("events2-suspended"), recorded!("events2-connecting")];
        assert_eq!([held, goes_on].map(|text| parse_suspended(text, 1)), [Some(true), Some(false)]);
        assert_eq!(parse_suspended(held, 2), None);
        let both = format!("exists resource name:a suspended:no\n{held}");
        assert_eq!(parse_suspended(&both, 1), Some(true));
        assert_eq!(parse_current_uuid(recorded!("get-gi")), Some(0x6CE2_63A3_1660_1351));
    }
}
