//! Logical volumes as backing devices: their snapshots, and whether LVM would read a DRBD device.

use std::{collections::BTreeSet, path::Path};

use regex::Regex;

use super::{
    CowSize, HostError, Identity, Taken,
    command::{PATIENCE, run, text},
};

/// The tag of a snapshot at which the bitmap was cleared, before the UUID.
const MARK: &str = "driftline:rotated=";

/// The tag of a snapshot that is remembered, before its identity.
const IDENTITY: &str = "driftline:identity=";

/// A logical volume that a snapshot can be taken of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogicalVolume {
    pub(super) group: String,
    pub(super) name: String,
    /// Whether it is cut from a thin pool.
    pub(super) thin: bool,
}

impl LogicalVolume {
    /// The logical volume whose device this is.
    pub(super) fn find(device: &Path) -> Result<Self, HostError> {
        let path = device.display().to_string();
        let args =
            ["lvs", "--noheadings", "--separator", "|", "-o", "vg_name,lv_name,segtype", &path];
        parse_volume(&run(&args, PATIENCE)?).map_err(|why| HostError::Store { device: path, why })
    }

    pub(super) fn take(&self, name: &str, cow: CowSize) -> Result<(), HostError> {
        let origin = self.of(&self.name);
        let mut args = vec!["lvcreate", "-q", "--yes", "--snapshot", "--permission", "r"];
        let size = cow.of_lvcreate();
        if self.thin {
            args.extend(["--setactivationskip", "n", "--activate", "y"]);
        } else {
            args.extend(size.iter().map(String::as_str));
        }
        args.extend(["--name", name, &origin]);
        run(&args, PATIENCE).map(drop)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), HostError> {
        run(&["lvremove", "-q", "--yes", &self.of(name)], PATIENCE).map(drop)
    }

    pub(super) fn mark(
        &self,
        name: &str,
        uuid: u64,
        identity: Option<&str>,
    ) -> Result<(), HostError> {
        let (name, tag) = (self.of(name), format!("{MARK}{uuid:016x}"));
        let identity = identity.map(|identity| format!("{IDENTITY}{identity}"));
        let mut args = vec!["lvchange", "-q", "--addtag", &tag];
        if let Some(identity) = &identity {
            args.extend(["--addtag", identity]);
        }
        args.push(&name);
        run(&args, PATIENCE).map(drop)
    }

    pub(super) fn identity(&self, name: &str) -> Result<Identity, HostError> {
        let (name, columns) = (self.of(name), "lv_tags,vg_uuid,lv_uuid,thin_id");
        let args = ["lvs", "--noheadings", "--separator", "|", "-o", columns, &name];
        let told = run(&args, PATIENCE)?;
        parse_identity(&told).ok_or_else(|| HostError::not_understood(&text(&args), &told))
    }

    /// All snapshots of it.
    pub(super) fn taken(&self) -> Result<Vec<Taken>, HostError> {
        let fields = "lv_name,origin,lv_tags,lv_snapshot_invalid";
        let args = ["lvs", "--noheadings", "--separator", "|", "-o", fields, &self.group];
        Ok(parse_snapshots(&run(&args, PATIENCE)?, &self.name))
    }

    pub(super) fn device(&self, name: &str) -> String {
        format!("/dev/{}/{name}", self.group)
    }

    fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }
}

/// One line for each segment of one volume.
fn parse_volume(text: &str) -> Result<LogicalVolume, String> {
    let mut found: Option<LogicalVolume> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let [group, name, kind] = fields(line).ok_or_else(|| format!("lvs says {line:?} of it"))?;
        let thin = kind == "thin";
        // Of all others it is not known how LVM takes their snapshots.
        if !thin && !["linear", "striped"].contains(&kind) && !kind.starts_with("raid") {
            return Err(format!("it is a logical volume of type {kind}"));
        }
        found = Some(LogicalVolume { group: group.to_owned(), name: name.to_owned(), thin });
    }
    found.ok_or_else(|| "lvs says nothing of it".to_owned())
}

fn parse_identity(told: &str) -> Option<Identity> {
    let [tags, group, volume, id] = fields(told.trim())?;
    let then = tags.split(',').find_map(|tag| tag.strip_prefix(IDENTITY));
    Some(Identity { now: format!("{group}:{volume}:{id}"), then: then.map(str::to_owned) })
}

fn parse_snapshots(text: &str, origin: &str) -> Vec<Taken> {
    let lines = text.lines().map(str::trim);
    let rows = lines.filter_map(fields::<4>).filter(|row| row[1] == origin);
    rows.map(|[name, _, tags, invalid]| {
        let mark = tags.split(',').find_map(|tag| tag.strip_prefix(MARK));
        let mark = mark.and_then(|uuid| u64::from_str_radix(uuid, 16).ok());
        // Of a thin one LVM says "unknown".
        let spoilt = ["snapshot invalid", "1"].contains(&invalid);
        Taken { name: name.to_owned(), mark, spoilt }
    })
    .collect()
}

pub(super) fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
    fields.try_into().ok()
}

/// That LVM reads no device of these names, which are those of DRBD devices. It would wait for
/// one that is suspended, and whoever suspended it for LVM.
pub(super) fn check_filter(names: &BTreeSet<String>) -> Result<(), HostError> {
    let setting = |name: &str| {
        run(&["lvmconfig", "--typeconfig", "full", &format!("devices/{name}")], PATIENCE)
    };
    // Of a list of devices that is kept, LVM reads only those in it.
    let kept = std::fs::read_to_string("/etc/lvm/devices/system.devices").unwrap_or_default();
    let is_kept = setting("use_devicesfile").is_ok_and(|text| text.trim().ends_with("=1"));
    if !(is_kept && kept.contains("IDTYPE=") && !kept.contains("drbd")) {
        let mut filters = vec![setting("global_filter")?];
        // An older LVM may not have this one.
        filters.extend(setting("filter"));
        let filters: Vec<Filter> =
            filters.iter().map(|text| Filter::parse(text)).collect::<Result<_, _>>()?;
        if !filters.iter().any(|filter| filter.rejects(names)) {
            return Err(HostError::Filter { device: names.first().cloned().unwrap_or_default() });
        }
    }
    // And what LVM itself says.
    let seen = run(&["pvs", "-a", "--noheadings", "-o", "pv_name"], PATIENCE)?;
    match seen.lines().map(str::trim).find(|line| names.contains(*line)) {
        Some(device) => Err(HostError::Filter { device: device.to_owned() }),
        None => Ok(()),
    }
}

/// A list of patterns in LVM's configuration, the first that matches a name decides about it.
struct Filter(Vec<(bool, Regex)>);

impl Filter {
    /// Reads what `lvmconfig` prints: `global_filter=["r|^/dev/drbd|"]`.
    fn parse(text: &str) -> Result<Self, HostError> {
        let unknown = || HostError::NotUnderstood {
            command: "lvmconfig".to_owned(),
            output: text.chars().take(200).collect(),
        };
        let (_, list) = text.split_once('=').ok_or_else(unknown)?;
        let mut patterns = Vec::new();
        let mut rest = list;
        while let Some((_, quoted)) = rest.split_once('"') {
            let (pattern, after) = unquote(quoted).ok_or_else(unknown)?;
            patterns.push(parse_pattern(&pattern).ok_or_else(unknown)?);
            rest = after;
        }
        Ok(Self(patterns))
    }

    /// Whether a device of these names is not read: a name of it is rejected, and none accepted.
    fn rejects(&self, names: &BTreeSet<String>) -> bool {
        let decide =
            |name: &String| self.0.iter().find(|row| row.1.is_match(name)).map(|row| row.0);
        let decided: Vec<bool> = names.iter().filter_map(decide).collect();
        !decided.is_empty() && decided.iter().all(|accepts| !accepts)
    }
}

/// What stands up to the closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

/// Whether it accepts, and what: a letter, and an expression between two marks.
fn parse_pattern(text: &str) -> Option<(bool, Regex)> {
    let mut chars = text.chars();
    let accepts = match chars.next()? {
        'a' => true,
        'r' => false,
        _ => return None,
    };
    let close = match chars.next()? {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        other => other,
    };
    let (expression, _) = chars.as_str().rsplit_once(close)?;
    Some((accepts, Regex::new(expression).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_and_snapshots_are_found_in_what_lvs_prints() {
        let volume =
            |name: &str, thin| LogicalVolume { group: "lab".into(), name: name.into(), thin };
        assert_eq!(parse_volume("  lab|r0|thin\n").unwrap(), volume("r0", true));
        assert_eq!(
            parse_volume("  lab|r0|linear\n  lab|r0|striped\n").unwrap(),
            volume("r0", false)
        );
        for text in ["", "  lab|r0|vdo\n", "  lab|r0|linear\n  lab|r0|mirror\n", "  lab|r0\n"] {
            assert!(parse_volume(text).is_err(), "{text}");
        }
        let text = "  r0||| \n  a|r0|x,driftline:rotated=00000000000000ab,y|\n  b|r0||snapshot \
                    invalid\n  c|r1||\n  d|r0|driftline:rotated=zz|\n";
        let taken = parse_snapshots(text, "r0");
        let row = |name: &str, mark, spoilt| Taken { name: name.into(), mark, spoilt };
        assert_eq!(
            taken,
            [row("a", Some(0xab), false), row("b", None, true), row("d", None, false)]
        );
    }

    #[test]
    fn what_a_snapshot_was_and_is_are_found_in_what_lvs_prints() {
        let told = "  driftline:identity=G:V:6,driftline:rotated=00000000000000ab|G|V|7\n";
        let identity = parse_identity(told).unwrap();
        assert_eq!((identity.now.as_str(), identity.then.as_deref()), ("G:V:7", Some("G:V:6")));
        assert!(!identity.is_same());
        assert!(parse_identity("  driftline:identity=G:V:7|G|V|7\n").unwrap().is_same());
        let recorded = parse_identity(include_str!("../../tests/recorded/lvs-identity")).unwrap();
        assert!(recorded.is_same() && recorded.now.ends_with(":3"));
        assert!(!parse_identity("  |G|V|7\n").unwrap().is_same());
        assert_eq!(parse_identity(""), None);
    }

    #[test]
    fn a_filter_rejects_only_what_has_no_name_that_it_accepts() {
        let names = ["/dev/drbd1", "/dev/drbd/by-res/r0/0", "/dev/block/147:1"];
        let names: BTreeSet<String> = names.map(str::to_owned).into();
        for (text, rejects) in [
            (r#"global_filter=["r|^/dev/drbd|","r|^/dev/zd|"]"#, true),
            (r#"global_filter="r|/drbd.*|""#, true),
            (r#"filter=["a|^/dev/sd|","r|.*|"]"#, true),
            (r#"filter=["r(^/dev/drbd)"]"#, true),
            // The device has another name, which the last accepts.
            (r#"global_filter=["r|^/dev/drbd|","a|.*|"]"#, false),
            (r#"global_filter=["a|.*|"]"#, false),
            (r#"global_filter=["r|^/dev/zd|"]"#, false),
            ("global_filter=[]", false),
        ] {
            assert_eq!(Filter::parse(text).unwrap().rejects(&names), rejects, "{text}");
        }
        for bad in ["", "x=[\"q|a|\"]", "x=[\"r|a\"]", "x=[\"r|a", "x=[\"r|(|\"]"] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    /// What LVM 2.03.31 says: `tests/recorded/README.md`.
    #[test]
    fn what_lvm_said_is_understood() {
        let text = include_str!("../../tests/recorded/lvs-volumes");
        let [thick, thin] = text.lines().collect::<Vec<_>>().try_into().unwrap();
        assert!(!parse_volume(thick).unwrap().thin && parse_volume(thin).unwrap().thin);
        let text = include_str!("../../tests/recorded/lvs-snapshots");
        let row = |name: &str, mark, spoilt| Taken { name: name.into(), mark, spoilt };
        assert_eq!(parse_snapshots(text, "thin1"), [row("driftline-x-1", Some(0xab), false)]);
        assert_eq!(
            parse_snapshots(text, "thick1"),
            [row("driftline-x-2", None, true), row("driftline-x-3", None, false)]
        );
        let names = BTreeSet::from(["/dev/drbd1".to_owned()]);
        let rejects = |text| Filter::parse(text).unwrap().rejects(&names);
        assert!(rejects(include_str!("../../tests/recorded/global_filter")));
        assert!(!rejects(include_str!("../../tests/recorded/filter")));
    }
}
