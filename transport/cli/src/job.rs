//! Job files: what a timer replicates, one TOML file for each job.
//!
//! Their keys are the long options of `push` and `pull` with `_` for `-`. What the command line
//! says comes first. Consent to an overwrite is no key: a timer cannot give it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::{args, exit::Usage};

/// Where the job is that is named and not written as a path.
const JOBS_DIR: &str = "/etc/driftline/jobs";

/// A job as it is written. Unknown keys are errors: a misspelt one would silently not apply.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    source: String,
    target: String,
    peer: Option<String>,
    key: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    index: Option<PathBuf>,
    like: Option<String>,
    compress: Option<String>,
    limit_rate: Option<String>,
    loss_max: Option<String>,
    source_timeout: Option<String>,
    compare_every: Option<String>,
    audit_age: Option<String>,
    audit_sample: Option<String>,
    metrics: Option<PathBuf>,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    at_once: Option<usize>,
    #[serde(default)]
    zfs: args::Zfs,
    #[serde(default)]
    drbd: args::Drbd,
    #[serde(default)]
    linstor: args::Linstor,
    #[serde(default)]
    receive: args::Receive,
}

/// Fills in what the command line leaves to the job file that it names.
pub(crate) fn fill(arguments: &mut args::Replicate) -> anyhow::Result<()> {
    let Some(job) = &arguments.job else { return Ok(()) };
    let path = path_of(job)?;
    let context = || format!("the job {} cannot be used", path.display());
    let text = fs::read_to_string(&path).with_context(context)?;
    fill_from(arguments, &text).map_err(|error| Usage(format!("{error:#}"))).with_context(context)
}

fn path_of(job: &str) -> anyhow::Result<PathBuf> {
    match job {
        "" | "." | ".." => bail!("{job:?} is no job's name"),
        job if job.contains('/') => Ok(job.into()),
        job => Ok(Path::new(JOBS_DIR).join(format!("{job}.toml"))),
    }
}

fn fill_from(arguments: &mut args::Replicate, text: &str) -> anyhow::Result<()> {
    let written: Written = toml::from_str(text)?;
    if written.version != 1 {
        bail!("version is {}, and this build knows version 1", written.version);
    }
    if written.recursive && written.like.is_some() {
        bail!("like is said of one volume, and it is a tree of them");
    }
    if written.zfs.latest && written.zfs.snapshot.is_some() {
        bail!("snapshot and latest exclude each other");
    }
    let args::Replicate {
        source,
        target,
        like,
        index,
        compress,
        limit_rate,
        loss_max,
        source_timeout,
        tree,
        zfs,
        drbd,
        linstor,
        receive,
        audit,
        metrics,
        peer,
        state,
        ..
    } = arguments;
    *source = Some(written.source);
    *target = Some(written.target);
    let or = |said: &mut Option<String>, written| *said = said.take().or(written);
    or(like, written.like);
    *index = index.take().or(written.index);
    or(compress, written.compress);
    or(limit_rate, written.limit_rate);
    or(loss_max, written.loss_max);
    or(source_timeout, written.source_timeout);
    or(&mut audit.compare_every, written.compare_every);
    or(&mut audit.audit_age, written.audit_age);
    or(&mut audit.audit_sample, written.audit_sample);
    *metrics = metrics.take().or(written.metrics);
    or(&mut peer.peer, written.peer);
    peer.key = peer.key.take().or(written.key);
    state.state_dir = state.state_dir.take().or(written.state_dir);
    tree.recursive |= written.recursive;
    tree.include.extend(written.include);
    tree.exclude.extend(written.exclude);
    tree.at_once = tree.at_once.or(written.at_once);
    // Which snapshot is one choice, wherever it is made.
    if !zfs.latest && zfs.snapshot.is_none() {
        (zfs.latest, zfs.snapshot) = (written.zfs.latest, written.zfs.snapshot);
    }
    or(&mut zfs.prefix, written.zfs.prefix);
    zfs.keep = zfs.keep.or(written.zfs.keep);
    zfs.read_back = zfs.read_back.or(written.zfs.read_back);
    zfs.raw |= written.zfs.raw;
    zfs.with = zfs.with.or(written.zfs.with);
    drbd.mode = drbd.mode.or(written.drbd.mode);
    or(&mut drbd.cow_size, written.drbd.cow_size);
    drbd.freeze_max = drbd.freeze_max.or(written.drbd.freeze_max);
    drbd.cross_check |= written.drbd.cross_check;
    drbd.rotated |= written.drbd.rotated;
    linstor.fill_from(written.linstor);
    receive.exclude.extend(written.receive.exclude);
    receive.set.extend(written.receive.set);
    receive.take.extend(written.receive.take);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command, ReadBack, Replicate};

    const SAMPLE: &str = include_str!("../dist/job.toml");

    fn parse(line: &[&str]) -> Replicate {
        let line = ["driftline", "push"].iter().chain(line);
        match Arguments::try_parse_from(line).unwrap().command {
            Command::Push(replicate) => replicate,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_shipped_sample_is_a_job() {
        let mut job = parse(&["--job", "vm1"]);
        fill_from(&mut job, SAMPLE).unwrap();
        assert_eq!(job.source.as_deref(), Some("zfs:tank/vm1"));
        assert_eq!(job.target.as_deref(), Some("vm1@target.example:7420"));
        assert!(job.peer.peer.is_some() && !job.full);
    }

    #[test]
    fn the_command_line_comes_first() {
        let text = "version = 1\nsource = \"zfs:a/b\"\ntarget = \"file:/x\"\nlimit_rate = \"1M\"\n\
                    compress = \"3\"\n[zfs]\nlatest = true\nkeep = 7\nread_back = \"all\"\n[drbd]\n\
                    mode = \"rotate\"\ncow_size = \"1G\"\nfreeze_max = 3\ncross_check = true\n[linstor]\n\
                    controllers = \"a,b\"\nnode = \"n\"\ncertificate = \"c\"\nkey = \"k\"\n";
        let line = [
            "--job",
            "vm1",
            "--limit-rate",
            "2M",
            "--snapshot",
            "x",
            "--full",
            "--mode",
            "cumulative",
            "--linstor-node",
            "m",
        ];
        let mut job = parse(&line);
        fill_from(&mut job, text).unwrap();
        assert_eq!(job.limit_rate.as_deref(), Some("2M"));
        assert_eq!(job.compress.as_deref(), Some("3"));
        assert_eq!((job.zfs.snapshot.as_deref(), job.zfs.latest), (Some("x"), false));
        assert_eq!((job.zfs.keep, job.zfs.read_back), (Some(7), Some(ReadBack::All)));
        assert_eq!(job.drbd.mode, Some(crate::args::DrbdMode::Cumulative));
        assert!(job.drbd.cross_check);
        assert_eq!((job.drbd.cow_size.as_deref(), job.drbd.freeze_max), (Some("1G"), Some(3)));
        assert_eq!(job.linstor.controllers.as_deref(), Some("a,b"));
        assert_eq!(job.linstor.node.as_deref(), Some("m"));
        assert_eq!(job.linstor.certificate.as_deref(), Some(Path::new("c")));
        assert_eq!(job.linstor.key.as_deref(), Some(Path::new("k")));
        assert!(job.full);
    }

    #[test]
    fn names_and_paths() {
        assert_eq!(path_of("vm1").unwrap(), Path::new("/etc/driftline/jobs/vm1.toml"));
        assert_eq!(path_of("./vm1").unwrap(), Path::new("./vm1"));
        assert!(path_of("").is_err() && path_of("..").is_err());
    }

    #[test]
    fn the_units_of_push_and_pull_differ_in_the_verb_alone() {
        let settings = |unit: &str| {
            let lines = unit.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.replace("pull", "push") + "\n").collect::<String>()
        };
        for (push, pull) in [
            (
                include_str!("../dist/systemd/driftline-push@.service"),
                include_str!("../dist/systemd/driftline-pull@.service"),
            ),
            (
                include_str!("../dist/systemd/driftline-push@.timer"),
                include_str!("../dist/systemd/driftline-pull@.timer"),
            ),
        ] {
            assert_eq!(settings(push), settings(pull));
            assert_ne!(push, pull);
        }
    }

    /// Each replacement breaks the sample in one way, and the message says which.
    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (from, to, says) in [
            ("version = 1", "version = 2", "version"),
            ("version = 1", "", "version"),
            ("source =", "sorce =", "sorce"),
            ("target =", "full = true\ntarget =", "full"),
            ("target =", "compare = true\ntarget =", "compare"),
            ("[zfs]", "[zfs]\nkept = 1", "kept"),
            ("[drbd]", "[drbd]\nmode = \"both\"", "both"),
            ("[linstor]", "[linstor]\ncontroler = \"a\"", "controler"),
            ("[zfs]", "[zfs]\nlatest = true\nsnapshot = \"x\"", "exclude"),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            let bad = SAMPLE.replacen(from, to, 1);
            let error = fill_from(&mut parse(&["--job", "vm1"]), &bad).expect_err(to);
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }
}
