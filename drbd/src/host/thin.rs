//! What a thin pool says of two volumes in it: `thin_delta`, on a snapshot of the pool's metadata
//! that is reserved for that.

use std::io::{self, BufRead as _, BufReader, Read};

use driftline_extent::Extent;

use super::{
    HostError, LogicalVolume,
    command::{PATIENCE, run, run_into, text},
    lvm::fields,
};
use crate::{PoolDelta, map::MAP_EXTENTS_MAX, pool::Gathered};

/// The longest line of what `thin_delta` prints.
const LINE_MAX: u64 = 4096;

/// The largest block of a pool, in sectors: 1 GiB.
const BLOCK_SECTORS_MAX: u64 = 1 << 21;

const SECTOR_LEN: u64 = 512;

/// The numbers of two thin volumes in their pool.
type Pair = [u64; 2];

impl LogicalVolume {
    /// What differs between two snapshots of it, as their pool tells.
    ///
    /// # Errors
    ///
    /// Where they are in no pool, or it does not tell.
    pub(crate) fn delta(&self, base: &str, tip: &str) -> Result<PoolDelta, HostError> {
        let names = [base, tip].map(|name| format!("{}/{name}", self.group));
        let columns = "lv_name,pool_lv,thin_id";
        let args = [LVS, &["-o", columns, &names[0], &names[1]]].concat();
        let told = run(&args, PATIENCE)?;
        let found = parse_places(&told, [base, tip]);
        let (pool, ids) = found.ok_or_else(|| HostError::not_understood(&text(&args), &told))?;
        let of_pool = format!("{}/{pool}", self.group);
        let args = [LVS, &["-o", "metadata_lv", &of_pool]].concat();
        let told = run(&args, PATIENCE)?;
        let metadata = told.trim().trim_matches(['[', ']']);
        let device = format!("/dev/mapper/{}", dm_name(&self.group, metadata));
        let target = format!("{}-tpool", dm_name(&self.group, &pool));
        let message = |what: &str| {
            let args = ["dmsetup", "message", &target, "0", what];
            run(&args, PATIENCE).map(drop).map_err(|error| match error {
                HostError::Failed { said, .. } if said.contains("busy") => {
                    HostError::Reserved { pool: target.clone() }
                }
                other => other,
            })
        };
        while_reserved(message, || {
            let [left, right] = ids.map(|id| id.to_string());
            let args = ["thin_delta", "-m", "--snap1", &left, "--snap2", &right, &device];
            let read = run_into(&args, PATIENCE, move |pipe| parse_delta(pipe, ids))?;
            read.map_err(|output| HostError::not_understood(&text(&args), &output))
        })
    }
}

const LVS: &[&str] = &["lvs", "--noheadings", "--separator", "|"];

/// How the device mapper calls a logical volume.
fn dm_name(group: &str, name: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"))
}

/// Does the work while a snapshot of the pool's metadata is reserved. There is one for each pool,
/// so one of somebody else is neither used nor released.
fn while_reserved<T>(
    message: impl Fn(&str) -> Result<(), HostError>,
    work: impl FnOnce() -> Result<T, HostError>,
) -> Result<T, HostError> {
    let release = || {
        if let Err(error) = message("release_metadata_snap") {
            tracing::warn!(%error, "cannot release the reserved snapshot of the pool's metadata");
        }
    };
    match message("reserve_metadata_snap") {
        Ok(()) => {
            let done = work();
            release();
            done
        }
        Err(error) => {
            // It may have been done nevertheless.
            if matches!(error, HostError::Late { .. } | HostError::Unheard { .. }) {
                release();
            }
            Err(error)
        }
    }
}

/// The pool of two volumes, and their numbers in it.
fn parse_places(told: &str, names: [&str; 2]) -> Option<(String, Pair)> {
    let rows: Vec<[&str; 3]> = told.lines().map(str::trim).filter_map(fields).collect();
    let find = |name: &str| rows.iter().find(|row| row[0] == name);
    let [base, tip] = names.map(find);
    let ([_, pool, left], [_, other, right]) = (base?, tip?);
    if pool.is_empty() || pool != other {
        return None;
    }
    Some(((*pool).to_owned(), [left.parse().ok()?, right.parse().ok()?]))
}

/// Reads what `thin_delta` prints: of units of the pool, in runs. A line that is not understood
/// is the inner error, as is the lack of an end.
fn parse_delta(input: &mut dyn Read, ids: Pair) -> io::Result<Result<PoolDelta, String>> {
    parse_within(input, ids, MAP_EXTENTS_MAX)
}

fn parse_within(
    input: &mut dyn Read,
    ids: Pair,
    runs_max: usize,
) -> io::Result<Result<PoolDelta, String>> {
    let mut input = BufReader::new(input);
    let mut reader = Reader { ids, runs_max, at: At::Start };
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut input).take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(match reader.at {
                At::End(gathered) => Ok(gathered.delta()),
                _ => Err("it ends in the middle".to_owned()),
            });
        }
        let line = String::from_utf8_lossy(&line);
        let words = line.trim();
        if !words.is_empty() && reader.take(words).is_none() {
            return Ok(Err(words.to_owned()));
        }
    }
}

/// Where in the output it is, and what was read.
struct Reader {
    ids: Pair,
    runs_max: usize,
    at: At,
}

enum At {
    Start,
    /// In a pool whose blocks have this length.
    Pool(u64),
    /// In the difference of the two.
    Diff(u64, Gathered),
    /// The difference has ended.
    Told(Gathered),
    End(Gathered),
}

impl Reader {
    /// One line; `None` if it makes no sense there.
    fn take(&mut self, line: &str) -> Option<()> {
        let tag = line.strip_prefix('<')?.strip_suffix('>')?.split(' ').next()?;
        self.at = match (std::mem::replace(&mut self.at, At::Start), tag) {
            (At::Start, "superblock") => {
                let sectors = number(line, "data_block_size")?;
                (1..=BLOCK_SECTORS_MAX).contains(&sectors).then_some(())?;
                At::Pool(sectors * SECTOR_LEN)
            }
            (At::Pool(unit), "diff") => {
                let named = [number(line, "left")?, number(line, "right")?];
                (named == self.ids).then_some(())?;
                At::Diff(unit, Gathered::new(unit, self.runs_max))
            }
            (At::Diff(unit, gathered), "same") => At::Diff(unit, gathered),
            (At::Diff(unit, mut gathered), "different" | "left_only" | "right_only") => {
                let bytes = |name| number(line, name)?.checked_mul(unit);
                gathered.add(Extent::new(bytes("begin")?, bytes("length")?)?);
                At::Diff(unit, gathered)
            }
            (At::Diff(_, gathered), "/diff") => At::Told(gathered),
            (At::Told(gathered), "/superblock") => At::End(gathered),
            _ => return None,
        };
        Some(())
    }
}

/// The number that an attribute of a tag has.
fn number(tag: &str, name: &str) -> Option<u64> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    rest.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn parse(text: &str, ids: Pair) -> Result<PoolDelta, String> {
        parse_delta(&mut text.as_bytes(), ids).unwrap()
    }

    const TEXT: &str = "<superblock uuid=\"\" time=\"2\" transaction=\"4\" data_block_size=\"384\" \
                        nr_data_blocks=\"0\">\n  <diff left=\"7\" right=\"9\">\n    <same \
                        begin=\"0\" length=\"3\"/>\n    <different begin=\"3\" length=\"2\"/>\n    \
                        <left_only begin=\"10\" length=\"1\"/>\n    <right_only begin=\"20\" \
                        length=\"5\"/>\n  </diff>\n</superblock>\n";

    #[test]
    fn what_differs_is_what_either_lacks_and_what_both_have_apart() {
        let delta = parse(TEXT, [7, 9]).unwrap();
        assert_eq!((delta.granularity, delta.holes.is_empty()), (384 * 512, true));
        let runs: Vec<(u64, u64)> = delta
            .changed
            .iter()
            .map(|run| (run.offset() / (384 * 512), run.len() / (384 * 512)))
            .collect();
        assert_eq!(runs, [(3, 2), (10, 1), (20, 5)]);
        // In little room it is coarser, and has it all.
        let coarse = parse_within(&mut TEXT.as_bytes(), [7, 9], 1).unwrap().unwrap();
        assert_eq!(coarse.changed.extent_count(), 1);
        assert!(delta.changed.subtract(&coarse.changed).is_empty());
    }

    /// What thin-provisioning-tools 1.1.0 says: `tests/recorded/README.md`.
    #[test]
    fn a_real_delta_is_read() {
        let delta = parse(include_str!("../../tests/recorded/thin-delta"), [2, 3]).unwrap();
        let unit = 64 << 10;
        assert_eq!(delta.granularity, unit);
        let runs: Vec<(u64, u64)> =
            delta.changed.iter().map(|run| (run.offset() / unit, run.len() / unit)).collect();
        assert_eq!(runs, [(16, 1), (80, 1), (640, 48), (1232, 1), (1535, 1)]);
        let places = include_str!("../../tests/recorded/lvs-places");
        let names = ["drbd-pool-thin", "driftline-4f79cf0d-1795420620664"];
        assert_eq!(parse_places(places, names), Some(("thin".to_owned(), [1, 3])));
    }

    #[test]
    fn what_is_cut_or_makes_no_sense_is_no_delta() {
        for end in (0..TEXT.trim_end().len()).filter(|end| TEXT.is_char_boundary(*end)) {
            assert!(parse(&TEXT[..end], [7, 9]).is_err(), "{end}");
        }
        assert!(parse(TEXT, [9, 7]).is_err());
        for (from, to) in [
            ("384", "0"),
            ("384", "-1"),
            ("384", "99999999999"),
            ("begin=\"3\"", "begin=\"18446744073709551615\""),
            ("length=\"2\"", "length=\"0\""),
            ("length=\"2\"", ""),
            ("different", "differs"),
            ("<diff ", "<same "),
            ("</diff>", ""),
            ("</superblock>", "</superblock>\n<superblock data_block_size=\"1\">"),
        ] {
            assert!(TEXT.contains(from), "{from}");
            assert!(parse(&TEXT.replacen(from, to, 1), [7, 9]).is_err(), "{to}");
        }
        assert!(parse(&"<".repeat(1 << 20), [7, 9]).is_err());
    }

    #[test]
    fn places_are_found_in_what_lvs_prints() {
        let text = "  b|thin|12\n  a|thin|3\n";
        assert_eq!(parse_places(text, ["a", "b"]), Some(("thin".to_owned(), [3, 12])));
        for bad in ["  b|thin|12\n", "  a|x|1\n  b|y|2\n", "  a||\n  b||\n", "  a|x|\n  b|x|1\n"] {
            assert_eq!(parse_places(bad, ["a", "b"]), None, "{bad}");
        }
        assert_eq!(dm_name("a-b", "thin_tmeta"), "a--b-thin_tmeta");
    }

    #[test]
    fn what_was_reserved_is_released_whatever_comes_of_it() {
        let failed = || HostError::NoDrbd;
        let late = || HostError::Late { command: String::new(), within: PATIENCE };
        let reserved = || HostError::Reserved { pool: String::new() };
        let both = ["reserve_metadata_snap", "release_metadata_snap"];
        for (reserve, work, said) in [
            (Ok(()), Ok(7), both.as_slice()),
            (Ok(()), Err(failed()), &both),
            (Err(late()), Ok(7), &both),
            (Err(reserved()), Ok(7), &both[..1]),
        ] {
            let is_good = reserve.is_ok() && work.is_ok();
            let (reserve, log) = (RefCell::new(Some(reserve)), RefCell::new(Vec::new()));
            let message = |what: &str| {
                log.borrow_mut().push(what.to_owned());
                // To release fails, which is no failure of the work.
                reserve.borrow_mut().take().unwrap_or_else(|| Err(failed()))
            };
            assert_eq!(while_reserved(message, || work).is_ok(), is_good);
            assert_eq!(*log.borrow(), said);
        }
    }
}
