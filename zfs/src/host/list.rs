//! What there is: data sets, and the points in their past.

use super::{Name, Zfs, ZfsError};
use crate::{
    DATASET_COLUMNS, DATASET_PROPERTIES_V23, Dataset, DatasetName, POINT_COLUMNS, POINT_PROPERTIES,
    Point, PointName, parse_datasets, parse_datasets_got, parse_points, parse_points_got,
};

impl Zfs {
    /// The data set of this name; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The command's, and [`ZfsError::Listing`] if what it printed makes no sense.
    pub fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        if !self.exists(name.clone())? {
            return Ok(None);
        }
        Ok(self.datasets(name, &["-d", "0"])?.into_iter().find(|dataset| dataset.name == *name))
    }

    /// What this data set is a clone of, and what that is a clone of, the nearest first and at
    /// most so many.
    ///
    /// # Errors
    ///
    /// As of [`dataset`](Self::dataset).
    pub fn origins(&self, name: &DatasetName, max: usize) -> Result<Vec<DatasetName>, ZfsError> {
        let mut origins = Vec::new();
        while origins.len() < max {
            let dataset = self.dataset(origins.last().unwrap_or(name))?;
            let Some(origin) = dataset.and_then(|dataset| dataset.origin) else { break };
            origins.push(origin.dataset().clone());
        }
        Ok(origins)
    }

    /// This data set and all below it, parents before their children.
    ///
    /// # Errors
    ///
    /// As of [`dataset`](Self::dataset), and that there is none.
    pub fn tree(&self, root: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        let mut tree = self.datasets(root, &["-r"])?;
        tree.sort_by(|a, b| a.name.as_str().split('/').cmp(b.name.as_str().split('/')));
        Ok(tree)
    }

    fn datasets(&self, root: &DatasetName, depth: &[&str]) -> Result<Vec<Dataset>, ZfsError> {
        let root = root.as_str();
        let kinds = ["-t", "filesystem,volume"];
        let list = ["list", "-Hp"].iter().chain(depth).chain(&kinds);
        match self.run(list.chain(&["-o", DATASET_COLUMNS, root])) {
            Ok(text) => Ok(parse_datasets(&text)?),
            Err(error) if error.is_old() => {
                let get = ["get", "-Hp"].iter().chain(depth).chain(&["-o", "name,property,value"]);
                let text = self.run(get.chain(&[DATASET_PROPERTIES_V23, root]))?;
                Ok(parse_datasets_got(&text, DATASET_PROPERTIES_V23)?)
            }
            Err(error) => Err(error),
        }
    }

    /// The snapshots and bookmarks of this data set, not of those below it.
    ///
    /// # Errors
    ///
    /// As of [`tree`](Self::tree).
    pub fn points(&self, name: &DatasetName) -> Result<Vec<Point>, ZfsError> {
        let name = name.as_str();
        let kinds = ["list", "-Hp", "-d", "1", "-t", "snapshot,bookmark"];
        match self.run(kinds.iter().chain(&["-o", POINT_COLUMNS, name])) {
            Ok(text) => Ok(parse_points(&text)?),
            Err(error) if error.is_old() => {
                let get = ["get", "-Hp", "-d", "1", "-o", "name,property,value"];
                let text = self.run(get.iter().chain(&[POINT_PROPERTIES, name]))?;
                Ok(parse_points_got(&text)?)
            }
            Err(error) => Err(error),
        }
    }

    /// One property, as `zfs get -Hp` prints it.
    ///
    /// # Errors
    ///
    /// The command's.
    pub fn property(&self, of: impl Into<Name>, property: &str) -> Result<String, ZfsError> {
        let of = of.into().to_string();
        let text = self.run(["get", "-Hp", "-o", "value", property, &of])?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The size of the volume that a snapshot is of, as it was then.
    ///
    /// # Errors
    ///
    /// The command's, and [`ZfsError::Misuse`] if it is no volume's.
    pub fn volsize(&self, snapshot: &PointName) -> Result<u64, ZfsError> {
        let size = self.property(snapshot.clone(), "volsize")?;
        size.parse().map_err(|_| ZfsError::Misuse(format!("{snapshot} is not of a volume")))
    }
}
