//! `driftline push -r`: the data sets of a tree, each by itself, from one instant.
//!
//! A member waits for the one that it is in: ZFS receives into a data set that is there. One
//! whose parent failed is not tried. The others go on: one volume that is refused must not cost
//! the rest their backup.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::{Context, anyhow, bail};
use driftline_extent::Accepts;
use driftline_zfs::{
    Dataset, DatasetKind, DatasetName, SnapshotGroup, host::Zfs, select::Patterns,
};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::{
    args,
    done::{Done, Member, Outcome},
    exit::{classify, code, misused},
    place::Place,
    print::{complain, say},
    progress::Show,
    replication::{Job, Together, remote_state},
    report,
    target::TargetPlace,
    terms::group,
};

/// How many members are on their way at the same time if nothing is said, and at most.
const AT_ONCE: usize = 4;
const AT_ONCE_MAX: usize = 64;

/// Refuses what makes no sense together.
pub(crate) fn check(arguments: &args::Replicate) -> anyhow::Result<()> {
    let args::Replicate { tree, full, zfs, state, .. } = arguments;
    if !tree.recursive {
        if !tree.include.is_empty() || !tree.exclude.is_empty() || tree.at_once.is_some() {
            misused!("--include, --exclude and --at-once are said with -r");
        }
        return Ok(());
    }
    if tree.at_once.is_some_and(|count| !(1..=AT_ONCE_MAX).contains(&count)) {
        misused!("--at-once takes a number from 1 to {AT_ONCE_MAX}");
    }
    if *full {
        misused!(
            "--full is said of one data set, and not with -r: push the one that needs it alone"
        );
    }
    if zfs.with == Some(args::With::Tree) {
        misused!("-r sends each data set of a tree by itself, and --with tree all in one stream");
    }
    if state.state_dir.is_some() {
        misused!("--state-dir is said of one replica, and not with -r");
    }
    Ok(())
}

/// Runs the command and prints what it did.
pub(crate) async fn run(
    job: Job,
    tree: &args::Tree,
    source: &Place,
    target: &Place,
    json: bool,
    show: Show,
) -> anyhow::Result<u8> {
    let Place::Zfs(root) = source else {
        misused!(
            "-r is said of a zfs: source, and {source} is none: a tree is pushed from where it \
             is, or pulled as one stream (--with tree where it is configured)"
        );
    };
    let started = Instant::now();
    let zfs = Zfs::find()?;
    let datasets = datasets(&zfs, root, tree, takes_streams(&job, target).await?).await?;
    let (members, nowhere) = members(root, target, &datasets)?;
    let (to, wanted) = (target.to_string(), &job.zfs);
    let is_taken = wanted.snapshot.is_none() && !wanted.latest;
    let names = datasets.iter().map(|dataset| &dataset.name);
    let group = is_taken.then(|| group(zfs, wanted, &to, names)).transpose()?;
    let is_remote = matches!(target, Place::Remote { .. });
    let place = (!is_remote).then(|| TargetPlace::of(target)).transpose()?;
    for number in nowhere.keys() {
        withdraw(group.as_ref(), &members[*number]);
    }
    let job = job.of_members(Together { to, group }, place);
    let at_once = tree.at_once.unwrap_or(AT_ONCE);
    let show = if show == Show::Fitting { Show::Lines } else { show };
    let job = Arc::new(job);
    let tell = |(member, result): &Outcome| match result {
        Ok(done) if !json => say(report::member(&member.source(), done)),
        Ok(_) => {}
        Err(error) => {
            let (reason, source) = (classify(error).0, member.source());
            complain(format_args!("driftline: {reason}: {source}: {error:#}"));
        }
    };
    let outcomes = replicate(&job, members, nowhere, at_once, show, &tell).await?;
    let sources: Vec<Place> = outcomes.iter().map(|(member, _)| member.source()).collect();
    let runs = sources.iter().zip(&outcomes).map(|(source, (member, done))| {
        let exit = done.as_ref().map_or_else(|error| classify(error).1, Done::exit_code);
        (source, &member.target, exit, done.as_ref().ok())
    });
    job.tell_metrics(&runs.collect::<Vec<_>>());
    if json {
        say(report::tree_json(&outcomes, started.elapsed()));
    } else {
        say(report::tree(&outcomes, started.elapsed()));
    }
    Ok(exit_code(&outcomes))
}

/// What failed in all that failed, or that they failed for several reasons. If none did, whether
/// one is degraded.
fn exit_code(outcomes: &[Outcome]) -> u8 {
    let done = outcomes.iter().filter_map(|(_, result)| result.as_ref().ok());
    let done = done.map(Done::exit_code).max().unwrap_or(code::DONE);
    let failed = outcomes.iter().filter_map(|(_, result)| result.as_ref().err());
    let codes = failed.filter(|error| !error.is::<NotTried>()).map(|error| classify(error).1);
    codes.reduce(|a, b| if a == b { a } else { code::FAILED }).unwrap_or(done)
}

/// The member that it is in failed.
#[derive(Debug, thiserror::Error)]
#[error("not tried, as {0} failed, which it is in")]
struct NotTried(DatasetName);

/// Whether the target of the tree takes any data set, or only volumes.
async fn takes_streams(job: &Job, target: &Place) -> anyhow::Result<bool> {
    if let Place::Remote { volume, address } = target {
        let state = remote_state(volume, address, &job.peer).await;
        let state = state.with_context(|| target.to_string())?;
        return Ok(matches!(state.accepts, Accepts::Stream { .. }));
    }
    Ok(TargetPlace::of(target)?.takes_streams())
}

/// The data sets that take part, parents before their children.
async fn datasets(
    zfs: &Zfs,
    root: &DatasetName,
    tree: &args::Tree,
    streams: bool,
) -> anyhow::Result<Vec<Dataset>> {
    let [include, exclude] =
        [&tree.include, &tree.exclude].map(|patterns| patterns.iter().map(String::as_str));
    let patterns = Patterns::new(include, exclude)?;
    let (all, name) = (zfs.clone(), root.clone());
    let mut datasets = tokio::task::spawn_blocking(move || all.tree(&name)).await??;
    datasets.retain(|dataset| patterns.take_of(root, &dataset.name));
    if !streams {
        datasets.retain(|dataset| dataset.kind == DatasetKind::Volume);
    }
    if datasets.is_empty() {
        let what = if streams { "no data set" } else { "no volume, and the target takes no other" };
        bail!("{what} of zfs:{root} takes part: see --include, --exclude and `zfs list -r {root}`");
    }
    Ok(datasets)
}

/// Where each of them goes, and why some can go nowhere, by their numbers: a name may be too long
/// at the target. That is no reason to leave the others without their backup.
fn members(
    root: &DatasetName,
    target: &Place,
    datasets: &[Dataset],
) -> anyhow::Result<(Vec<Member>, BTreeMap<usize, anyhow::Error>)> {
    let (mut members, mut nowhere): (Vec<Member>, _) = (Vec::new(), BTreeMap::new());
    for (number, Dataset { name, .. }) in datasets.iter().enumerate() {
        let path = name.below(root).ok_or_else(|| anyhow!("{name} is not below {root}"))?;
        let place = place_of(target, path).unwrap_or_else(|error| {
            let advice = "rename it at the source, push to a target with a shorter name, or leave \
                          it out by --exclude";
            nowhere.insert(number, error.context(advice));
            target.clone()
        });
        let is_in = |other: &Dataset| name.below(&other.name).is_some();
        let parent = datasets[..number].iter().rposition(is_in);
        members.push(Member { name: name.clone(), target: place, parent });
    }
    Ok((members, nowhere))
}

/// What is at this path below the target of the tree.
fn place_of(target: &Place, path: &str) -> anyhow::Result<Place> {
    match target {
        _ if path.is_empty() => Ok(target.clone()),
        Place::Remote { volume, address } => Ok(format!("{volume}/{path}@{address}").parse()?),
        local => Ok(TargetPlace::of(local)?.below(path)?.into()),
    }
}

/// Leaves the snapshot of this member out of the instant.
fn withdraw(group: Option<&SnapshotGroup>, member: &Member) {
    if let Some(group) = group {
        group.withdraw(&member.name);
    }
}

/// Replicates all members, so many at once, and tells of each when it is done.
async fn replicate(
    job: &Arc<Job>,
    members: Vec<Member>,
    mut nowhere: BTreeMap<usize, anyhow::Error>,
    at_once: usize,
    show: Show,
    tell: &dyn Fn(&Outcome),
) -> anyhow::Result<Vec<Outcome>> {
    let mut schedule = Schedule::new(members.iter().map(|member| member.parent).collect());
    let mut results: Vec<Option<Outcome>> = members.iter().map(|_| None).collect();
    let mut running = JoinSet::new();
    loop {
        while running.len() < at_once
            && let Some(number) = schedule.start()
        {
            let (job, member) = (job.clone(), members[number].clone());
            let span = tracing::info_span!("member", name = %member.name);
            let nowhere = nowhere.remove(&number);
            let work = async move {
                let done = match nowhere {
                    Some(error) => Err(error),
                    None => job.run(&member.source(), &member.target, show).await,
                };
                (number, (member, done))
            };
            running.spawn(work.instrument(span));
        }
        let Some(joined) = running.join_next().await else { break };
        let (number, outcome) = joined?;
        tell(&outcome);
        let not_tried = schedule.end(number, outcome.1.is_ok());
        results[number] = Some(outcome);
        for child in not_tried {
            let member = members[child].clone();
            withdraw(job.together().and_then(|together| together.group.as_ref()), &member);
            let outcome = (member, Err(NotTried(members[number].name.clone()).into()));
            tell(&outcome);
            results[child] = Some(outcome);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// In which order the members of a tree are replicated.
#[derive(Debug)]
struct Schedule {
    /// Of each member the one that it is in, which comes before it.
    parents: Vec<Option<usize>>,
    stages: Vec<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Started,
    Done,
    Failed,
}

impl Schedule {
    fn new(parents: Vec<Option<usize>>) -> Self {
        let stages = vec![Stage::Waiting; parents.len()];
        Self { parents, stages }
    }

    /// Starts the first that waits for nothing; `None` if there is none now.
    fn start(&mut self) -> Option<usize> {
        let ready = |number: &usize| {
            let parent = self.parents[*number].map(|parent| self.stages[parent]);
            self.stages[*number] == Stage::Waiting && parent.is_none_or(|p| p == Stage::Done)
        };
        let number = (0..self.stages.len()).find(ready)?;
        self.stages[number] = Stage::Started;
        Some(number)
    }

    /// Notes how it went with one that was started, and says which others are not tried for it.
    fn end(&mut self, number: usize, well: bool) -> Vec<usize> {
        self.stages[number] = if well { Stage::Done } else { Stage::Failed };
        let mut not_tried = Vec::new();
        for child in number + 1..self.stages.len() {
            let parent = self.parents[child].map(|parent| self.stages[parent]);
            if self.stages[child] == Stage::Waiting && parent == Some(Stage::Failed) {
                self.stages[child] = Stage::Failed;
                not_tried.push(child);
            }
        }
        not_tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(name: &str, kind: DatasetKind) -> Dataset {
        let guid = 1;
        let columns = if kind == DatasetKind::Volume { "volume" } else { "filesystem" };
        let line = format!("{name}\t{columns}\t{guid}\t-\t-\t-\t0\toff\t-\t-\t-\n");
        driftline_zfs::parse_datasets(&line).unwrap().remove(0)
    }

    #[test]
    fn each_goes_to_its_own_path_below_the_target() {
        let names = ["tank/vm", "tank/vm/a", "tank/vm/a/b", "tank/vm/c d"];
        let datasets = names.map(|name| dataset(name, DatasetKind::FileSystem));
        let root: DatasetName = "tank/vm".parse().unwrap();
        let told = |target: &str| -> Vec<(String, Option<usize>)> {
            let (members, nowhere) = members(&root, &target.parse().unwrap(), &datasets).unwrap();
            assert!(nowhere.is_empty());
            members.iter().map(|member| (member.target.to_string(), member.parent)).collect()
        };
        let parents = [None, Some(0), Some(1), Some(0)];
        for (target, expected) in [
            ("zfs:back/x", ["zfs:back/x", "zfs:back/x/a", "zfs:back/x/a/b", "zfs:back/x/c d"]),
            ("file:/srv", ["file:/srv", "file:/srv/a", "file:/srv/a/b", "file:/srv/c d"]),
            ("vm@h:1", ["vm@h:1", "vm/a@h:1", "vm/a/b@h:1", "vm/c d@h:1"]),
        ] {
            let expected = expected.map(str::to_owned).into_iter().zip(parents);
            assert_eq!(told(target), expected.collect::<Vec<_>>());
        }
        // Where what is between is left out, what is above it is waited for.
        let datasets = [0, 2].map(|number| datasets[number].clone());
        let (both, _) = members(&root, &"zfs:b".parse().unwrap(), &datasets).unwrap();
        assert_eq!(both[1].parent, Some(0));
        // One whose name gets too long there goes nowhere, and the other goes where it should.
        for target in [format!("zfs:{}", "b".repeat(252)), format!("{}@h:1", "b".repeat(252))] {
            let target: Place = target.parse().unwrap();
            let (both, nowhere) = members(&root, &target, &datasets).unwrap();
            assert_eq!((both.len(), &both[0].target), (2, &target));
            let why = nowhere.iter().map(|(number, why)| (*number, format!("{why:#}")));
            let [(1, why)] = &why.collect::<Vec<_>>()[..] else { panic!("only the longer one") };
            assert!(why.contains("--exclude") && why.contains("255"), "{why}");
        }
    }

    #[test]
    fn a_child_waits_for_its_parent_and_is_not_tried_without_it() {
        let mut schedule = Schedule::new(vec![None, Some(0), Some(1), Some(0), None, Some(4)]);
        assert_eq!(
            [schedule.start(), schedule.start(), schedule.start()],
            [Some(0), Some(4), None]
        );
        assert_eq!(schedule.end(0, true), [0; 0]);
        assert_eq!(
            [schedule.start(), schedule.start(), schedule.start()],
            [Some(1), Some(3), None]
        );
        assert_eq!(schedule.end(1, false), [2]);
        assert_eq!(schedule.end(4, false), [5]);
        assert_eq!(schedule.end(3, true), [0; 0]);
        assert_eq!(schedule.start(), None);
    }

    #[test]
    fn the_exit_code_is_that_of_what_failed() {
        use driftline_extent::Reason;
        use driftline_transport::Failure;

        let name: DatasetName = "a/b".parse().unwrap();
        let target = Place::Zfs(name.clone());
        let member = Member { name: name.clone(), target, parent: None };
        let outcomes = |errors: Vec<anyhow::Error>| -> Vec<Outcome> {
            errors.into_iter().map(|error| (member.clone(), Err(error))).collect()
        };
        let of = |reason| anyhow::Error::new(Failure::new(reason, "x"));
        let base = || of(Reason::BaseMismatch);
        assert_eq!(exit_code(&[]), code::DONE);
        assert_eq!(exit_code(&outcomes(vec![base(), base()])), code::REFUSED);
        assert_eq!(exit_code(&outcomes(vec![base(), NotTried(name).into()])), code::REFUSED);
        assert_eq!(exit_code(&outcomes(vec![base(), of(Reason::TargetFull)])), code::FAILED);
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        use clap::Parser;

        let parse = |line: &str| {
            let line = format!("driftline push zfs:a/b zfs:c/d {line}");
            let parsed = crate::args::Arguments::try_parse_from(line.split(' ')).unwrap();
            match parsed.command {
                crate::args::Command::Push(arguments) => check(&arguments),
                other => panic!("{other:?}"),
            }
        };
        assert!(parse("-r --include x --exclude y --at-once 2 --with properties").is_ok());
        for bad in [
            "--include x",
            "--at-once 2",
            "-r --at-once 0",
            "-r --full",
            "-r --with tree",
            "-r --state-dir d",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
