//! `driftline status`: what a replica holds, and whether that can be relied on.

use std::{fs, path::Path};

use anyhow::Context;
use driftline_extent::{Accepts, Reason, TargetState};
use driftline_target::{Found, Inspection};
use driftline_transport::Failure;
use driftline_zfs::{DatasetName, host::Zfs};
use serde_json::json;

use crate::{
    args,
    exit::code,
    foreign, incidents,
    place::Place,
    print::{bytes, say},
    replication, report,
    scrub::is_only_word,
    target::{TargetPlace, TargetTerms},
    zvol::{KeptAs, ZvolManager, state_dir_of},
};

/// How it stands with a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Condition {
    /// It holds a generation, and nothing speaks against it.
    Whole,
    /// Nothing was ever begun here.
    Absent(String),
    /// Only a part of a first copy is there.
    Incomplete(String),
    /// The books are there, and the volume is not.
    Gone(String),
    /// It is known not to be what was committed.
    Damaged(String),
}

impl Condition {
    /// The word, and the exit code: both are an interface.
    const fn told(&self) -> (&'static str, u8) {
        match self {
            Self::Whole => ("whole", code::DONE),
            Self::Absent(_) => ("absent", code::ABSENT),
            Self::Incomplete(_) => ("incomplete", code::INCOMPLETE),
            Self::Gone(_) => ("gone", code::GONE),
            Self::Damaged(_) => ("damaged", code::REPLICA),
        }
    }

    fn words(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Absent(words)
            | Self::Incomplete(words)
            | Self::Gone(words)
            | Self::Damaged(words) => Some(words),
        }
    }
}

/// Shows what a replica holds. Returns the exit code.
pub(crate) async fn run(
    arguments: &args::Status,
    trust_dir: &Path,
    json: bool,
) -> anyhow::Result<u8> {
    let place: Place = arguments.target.parse()?;
    foreign::check_state_dir(&arguments.state, &place)?;
    let (state, found) = match &place {
        Place::Remote { volume, address } => {
            (replication::remote_state(volume, address, &arguments.peer).await?, None)
        }
        _ => {
            let place = TargetPlace::of(&place)?;
            let terms = TargetTerms::looking(&place, &arguments.state, trust_dir)?;
            let look = move || match place.inspect(&terms)? {
                Some(found) => {
                    let listed = place.is_listed(&terms, &found)?;
                    Ok((found.state.clone(), Some((found, listed))))
                }
                None => {
                    if let (TargetPlace::Zvol(name), None) = (&place, &terms.state_dir) {
                        check_strayed(name)?;
                    }
                    Ok::<_, anyhow::Error>((place.state(&terms)?, None))
                }
            };
            // On a thread of its own, so that a signal is heard meanwhile.
            tokio::task::spawn_blocking(look).await??
        }
    };
    let open = incidents::open_of(trust_dir, &arguments.target)?;
    let damage = open.iter().find(|(_, one)| is_only_word(one));
    let (found, listed) = found.map_or((None, true), |(found, listed)| (Some(found), listed));
    let condition = match condition_of(&place, &state, found.as_ref()) {
        Condition::Whole if !listed => Condition::Damaged(
            "the list of chunk ids is not what was committed: `driftline scrub --repair` makes it \
             again if the volume is as committed"
                .to_owned(),
        ),
        Condition::Whole if let Some((id, _)) = damage => {
            Condition::Damaged(format!("see incident {id}, until it is acknowledged"))
        }
        condition => condition,
    };
    let (word, exit) = condition.told();
    let writer = found.as_ref().filter(|found| found.is_written);
    let scrubbed_ms = found.as_ref().and_then(|found| found.scrubbed_ms);
    let applying = found.as_ref().is_some_and(|found| found.applying);
    if json {
        let mut told = report::state_json(&state);
        told["condition"] = json!(word);
        told["writer"] = json!(writer.map(|found| found.opened_by));
        told["applying"] = json!(applying);
        told["scrubbed"] = json!(scrubbed_ms.map(|ms| ms / 1000));
        told["incidents"] = open.iter().map(incidents::json).collect();
        say(told);
        return Ok(exit);
    }
    if !matches!(condition, Condition::Absent(_)) {
        say(report::state(&state));
    }
    if let Some(words) = condition.words() {
        say(format_args!("{word:<10} {words}"));
    }
    if let (Some(found), Condition::Whole) = (writer, &condition) {
        say(format_args!("written    {} has it open: an increment, or a repair", process(found)));
    }
    if applying && writer.is_none() {
        say("applying   the increment to it was stopped: the next verify, restore or push ends it");
    }
    if let Some(ms) = scrubbed_ms {
        say(format_args!("scrubbed   {}, and nothing was damaged", incidents::time(ms)));
    }
    open.iter().for_each(|incident| say(format_args!("incident   {}", incidents::line(incident))));
    Ok(exit)
}

/// Says of a volume without books that it is a replica which has another name than its books.
fn check_strayed(name: &DatasetName) -> anyhow::Result<()> {
    let zfs = Zfs::find()?;
    if !zfs.exists(name.clone())? {
        return Ok(());
    }
    let kept =
        ZvolManager::new(zfs, name.clone(), None).newest().with_context(|| name.to_string())?;
    let Some(KeptAs { name: point, generation, .. }) = kept else { return Ok(()) };
    let books = state_dir_of(name);
    let detail = format!(
        "zvol:{name} was a replica at {generation} when {} was taken, but its books are not in {}. \
         If it was renamed, they are in the folder of its old name: move that folder there, and push \
         to zvol:{name}",
        point,
        books.display()
    );
    Err(Failure::new(Reason::TargetForeign, detail).into())
}

fn process(found: &Inspection) -> String {
    found.opened_by.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn condition_of(place: &Place, state: &TargetState, found: Option<&Inspection>) -> Condition {
    let Some(found) = found else { return without_books(place, state) };
    match found.volume {
        Found::Nothing => {
            return Condition::Gone(
                "the books are there, and the file or device is not: put it back, or remove the \
                 books and copy anew"
                    .to_owned(),
            );
        }
        Found::Other => {
            let words = "what stands there is neither a file nor a block device";
            return Condition::Gone(words.to_owned());
        }
        Found::Resized(len) => {
            return Condition::Damaged(format!(
                "it has {}, and {} were committed: see `driftline verify`",
                bytes(len),
                bytes(state.size)
            ));
        }
        Found::Fitting => {}
    }
    if state.incomplete {
        return Condition::Incomplete(match found.is_written {
            true => format!("a first copy is on its way: {} writes it", process(found)),
            false => "a first copy was cut off: push again to go on".to_owned(),
        });
    }
    of_told(state)
}

/// Where nothing but the state is known: of a peer, of ZFS, and where nothing was begun.
fn without_books(place: &Place, state: &TargetState) -> Condition {
    let is_stream = matches!(state.accepts, Accepts::Stream { .. });
    match place {
        Place::File(path) => Condition::Absent(match fs::metadata(path) {
            Ok(_) => format!("{place} is there, and is no replica, or its books are elsewhere"),
            Err(_) => {
                format!("{place} is not there, and no books of a replica are: is that its name?")
            }
        }),
        Place::Zvol(_) => Condition::Absent(format!("no books of a replica {place} are here")),
        _ if state.generation.is_none() && is_stream => match &state.accepts {
            Accepts::Stream { token: Some(_), .. } => {
                Condition::Incomplete("a first copy was cut off: push again to go on".to_owned())
            }
            _ => Condition::Absent(format!("nothing was ever received as {place}")),
        },
        _ if *state == TargetState::nothing() => {
            Condition::Absent(format!("nothing was ever pushed to {place}"))
        }
        _ if !is_stream && state.incomplete => Condition::Incomplete(
            "a first copy is on its way, or was cut off: push again to go on".to_owned(),
        ),
        _ => of_told(state),
    }
}

fn of_told(state: &TargetState) -> Condition {
    if state.damaged {
        let words = "a scrub has found damage: push again to replace it from the source";
        return Condition::Damaged(words.to_owned());
    }
    Condition::Whole
}
