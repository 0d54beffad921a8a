//! How the maps of a source are checked: where its manifest is, how much is audited, and what was
//! found.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use driftline_extent::CHUNK_LEN;
use driftline_transport::auditor::{self, Auditor, Compare};
use driftline_trust::Incidents;

use crate::{
    args::{
        self,
        units::{DAY, parse_age, parse_bytes},
    },
    clock::now_ms,
    exit::Usage,
    place::Place,
};

/// How long ago anything may have been read again at most, if nothing is said.
const AGE_DAYS: u32 = 30;

/// What is agreed about checking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust<'a> {
    /// The folder of manifests and incidents.
    pub(crate) dir: &'a Path,
    /// How much is read again.
    pub(crate) audit: &'a args::Audit,
    /// Where it goes, in words that are the same for each run and no other.
    pub(crate) target: &'a str,
}

impl Trust<'_> {
    /// What checks the maps of this source. What it remembers is named after the target alone, as
    /// a source may be another snapshot each time.
    pub(crate) fn auditor(&self, source: &Place) -> anyhow::Result<Auditor> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("no randomness from the operating system")?;
        let name = blake3::hash(self.target.as_bytes()).to_hex();
        let terms = auditor::Terms {
            dir: self.dir.join("manifests").join(&name[..16]),
            incidents: incidents(self.dir),
            source: source.to_string(),
            target: self.target.to_owned(),
            age_ms: self.age()?.as_millis() as u64,
            sample: self.sample()?,
            compare: self.compare()?,
            now_ms: now_ms(),
            seed,
        };
        Ok(Auditor::new(terms))
    }

    /// Checks what was said, without using it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.age()?;
        self.compare()?;
        self.sample().map(drop)
    }

    fn age(&self) -> anyhow::Result<Duration> {
        let said = self.audit.audit_age.as_deref();
        said.map_or(Ok(DAY * AGE_DAYS), |text| parse_age("--audit-age", text))
    }

    /// When all is compared although there is a map.
    fn compare(&self) -> anyhow::Result<Compare> {
        let every = self.audit.compare_every.as_deref();
        let every = every.map(|text| parse_age("--compare-every", text)).transpose()?;
        Ok(match every {
            _ if self.audit.compare => Compare::Now,
            Some(age) => Compare::After(age.as_millis() as u64),
            None => Compare::Never,
        })
    }

    /// How many chunks are drawn; `None`: as many as it takes.
    fn sample(&self) -> anyhow::Result<Option<u64>> {
        match self.audit.audit_sample.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => {
                let bytes = parse_bytes(text);
                let words = "--audit-sample takes auto, or bytes, as in 64M or 0";
                let bytes = bytes.ok_or_else(|| Usage(words.to_owned()))?;
                Ok(Some(bytes.div_ceil(CHUNK_LEN)))
            }
        }
    }
}

/// The incidents of this machine.
pub(crate) fn incidents(dir: &Path) -> Incidents {
    Incidents::new(PathBuf::from(dir).join("incidents"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(age: &str, sample: &str) -> anyhow::Result<(Duration, Option<u64>)> {
        let audit = args::Audit {
            audit_age: Some(age.to_owned()),
            audit_sample: Some(sample.to_owned()),
            ..args::Audit::default()
        };
        let trust = Trust { dir: Path::new("/"), audit: &audit, target: "x" };
        trust.check()?;
        Ok((trust.age()?, trust.sample()?))
    }

    #[test]
    fn when_all_is_compared() {
        let compare = |now: bool, every: Option<&str>| {
            let compare_every = every.map(str::to_owned);
            let audit = args::Audit { compare: now, compare_every, ..args::Audit::default() };
            let trust = Trust { dir: Path::new("/"), audit: &audit, target: "x" };
            trust.check().and_then(|()| trust.compare())
        };
        assert_eq!(compare(false, None).unwrap(), Compare::Never);
        assert_eq!(compare(true, Some("1d")).unwrap(), Compare::Now);
        assert_eq!(compare(false, Some("2h")).unwrap(), Compare::After(7_200_000));
        let error = compare(true, Some("2")).unwrap_err();
        assert!(format!("{error}").starts_with("--compare-every takes"), "{error}");
    }

    #[test]
    fn ages_and_samples() {
        assert_eq!(trust("7d", "auto").unwrap(), (DAY * 7, None));
        assert_eq!(trust("1h", "0").unwrap(), (DAY / 24, Some(0)));
        assert_eq!(trust("3660d", "65M").unwrap(), (DAY * 3660, Some(1040)));
        for (age, sample) in [("0d", "auto"), ("7", "auto"), ("d", "0"), ("9d", "x"), ("-1h", "0")]
        {
            assert!(trust(age, sample).is_err(), "{age} {sample}");
        }
        let none = args::Audit::default();
        let usual = Trust { dir: Path::new("/"), audit: &none, target: "x" };
        assert_eq!((usual.age().unwrap(), usual.sample().unwrap()), (DAY * 30, None));
    }
}
