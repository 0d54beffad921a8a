//! A tree that goes by one stream: what decides is what each of its data sets holds.
//!
//! The stream of a tree is received one data set after the other, the root first. One that was
//! cut off leaves the root at its end, and data sets below it behind, so what the root holds says
//! nothing of them. So before the tree is called up to date, and before the next stream of it is
//! sent, the target is asked for each data set below the root. One that is not at the snapshot
//! which the root holds is brought there by a stream of its own: by the rest of what was cut off,
//! by what follows its newest snapshot, or by all of it and what is below it.

use std::collections::VecDeque;

use driftline_extent::{Accepts, Ask};

use super::{LiveError, LiveSource};
use crate::{DatasetName, PointKind, ResumeToken, host::Package, select::Base};

/// A look at the data sets below the root, at the snapshot that the root holds.
#[derive(Debug)]
pub(super) struct Round {
    /// The guid of that snapshot.
    pub(super) held: u64,
    /// Its name after the `@`, which is that of the others of its instant; `None` if it was destroyed
    /// here. Then there is nothing to bring a data set to, but a part that was cut off stands in the
    /// way of the next stream all the same.
    pub(super) short: Option<String>,
    /// The data sets that were not looked at yet, parents before their children.
    waiting: VecDeque<DatasetName>,
}

impl LiveSource {
    /// What is asked of the target before anything is planned.
    pub(super) fn question(&mut self) -> Result<Option<Ask>, LiveError> {
        let Accepts::Stream { token, .. } = &self.accepts else { return Ok(None) };
        let token = token.clone();
        if let Some(token) = &token
            && !self.discarded
            && self.is_lost(token)?
        {
            self.discarded = true;
            return Ok(Some(Ask { member: self.path(), discard: true }));
        }
        self.discarded = false;
        if self.options.package != Package::Replicate {
            return Ok(None);
        }
        if self.name == self.root {
            // What was cut off, or begins, goes first.
            let Some(held) = self.held.filter(|_| token.is_none()) else { return Ok(None) };
            if self.round.as_ref().is_some_and(|round| round.held == held) {
                return Ok(None);
            }
            let round = self.begin_round(held)?;
            let is_empty = round.waiting.is_empty();
            self.round = Some(round);
            if is_empty {
                return Ok(None);
            }
        } else if token.is_some() || !self.is_there()? {
            return Ok(None);
        }
        let next = self.round.as_mut().and_then(|round| round.waiting.pop_front());
        self.name = next.unwrap_or_else(|| self.root.clone());
        Ok(Some(Ask { member: self.path(), discard: false }))
    }

    /// Where the data set that is planned for is below the root.
    pub(super) fn path(&self) -> String {
        self.name.below(&self.root).unwrap_or_default().to_owned()
    }

    /// The data sets below the root that were there at the snapshot which the root holds, or all of
    /// them if nothing is left of that here.
    fn begin_round(&self, held: u64) -> Result<Round, LiveError> {
        let points = self.zfs.points(&self.root)?;
        let at = points.iter().find(|point| point.is_snapshot() && point.guid == held);
        let short = at.map(|at| at.name.short().to_owned());
        let mut waiting = VecDeque::new();
        for member in self.zfs.tree(&self.root)? {
            if member.name == self.root {
                continue;
            }
            // What was made later comes with the next stream of the tree.
            let snapshot = short.as_ref().and_then(|short| member.name.snapshot(short).ok());
            let is_due = match snapshot {
                Some(snapshot) => self.zfs.exists(snapshot)?,
                None => short.is_none(),
            };
            if is_due {
                waiting.push_back(member.name);
            }
        }
        Ok(Round { held, short, waiting })
    }

    /// Whether the target's data set has the snapshot of this round.
    fn is_there(&self) -> Result<bool, LiveError> {
        let short = self.round.as_ref().and_then(|round| round.short.as_ref());
        let Some(short) = short else { return Ok(true) };
        let Accepts::Stream { points: theirs, .. } = &self.accepts else { return Ok(true) };
        let points = self.zfs.points(&self.name)?;
        let wanted = self.name.snapshot(short)?;
        let Some(wanted) = points.iter().find(|point| point.name == wanted) else {
            // It was destroyed here meanwhile.
            return Ok(true);
        };
        let there =
            self.held == Some(wanted.guid) || theirs.iter().any(|point| point.guid == wanted.guid);
        if let Some(held) = self.held.filter(|_| there) {
            self.arrived(&points, held, self.zfs.abilities()?);
        }
        Ok(there)
    }

    /// How much goes by a stream from this base. Below the root it is what a data set lacks; what
    /// is below that again is there, or is looked at later.
    pub(super) fn package(&self, base: &Base<'_>) -> Package {
        match (self.options.package, base) {
            (Package::Replicate, Base::Since(base)) if self.name != self.root => {
                match base.name.kind() {
                    PointKind::Snapshot => Package::Steps,
                    PointKind::Bookmark => Package::One,
                }
            }
            (package, _) => package,
        }
    }

    /// Whether nobody can go on with this token, which is of a stream of ours: what it leads to,
    /// or starts from, is gone. Said loudly, as what arrived of it is thrown away.
    fn is_lost(&self, token: &str) -> Result<bool, LiveError> {
        // What makes no sense is for a person to look at.
        let Ok(token) = token.parse::<ResumeToken>() else { return Ok(false) };
        let to = &token.toname;
        if to.dataset() != &self.name && self.options.names.parse(to).is_none() {
            return Ok(false);
        }
        let points = self.zfs.points(&self.name)?;
        let has_tip = points.iter().any(|point| point.is_snapshot() && point.guid == token.toguid);
        let base = token.fromguid.filter(|guid| *guid != 0);
        let has_base = base.is_none_or(|guid| points.iter().any(|point| point.guid == guid));
        if has_tip && has_base {
            return Ok(false);
        }
        let gone = if has_tip { "the snapshot that it starts from" } else { "its snapshot" };
        tracing::warn!(
            dataset = %self.name, stream = %to, bytes = token.bytes,
            "the target keeps a partial stream that nobody can resume, because {gone} was destroyed \
             here: the target discards it, and the next stream starts again"
        );
        Ok(true)
    }
}
