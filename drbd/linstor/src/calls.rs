//! What is asked of a controller, call by call.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Client, LinstorError, Message, NodeName, OwnSnapshot, Progress, Resource, ResourceDefinition,
    ResourceName, Snapshot, SnapshotName, StoragePool,
    answer::{self, Level},
    client::Question,
};

/// A snapshot to be taken, on all nodes that have the data.
#[derive(Serialize)]
struct NewSnapshot<'a> {
    name: &'a str,
    resource_name: &'a str,
}

impl<'a> NewSnapshot<'a> {
    fn of(resource: &'a ResourceName, own: &'a OwnSnapshot) -> Self {
        Self { name: own.name().as_str(), resource_name: resource.as_str() }
    }
}

/// Several that are taken at one instant.
#[derive(Serialize)]
struct NewSnapshots<'a> {
    snapshots: Vec<NewSnapshot<'a>>,
}

impl Client {
    /// These resource definitions with their volumes, or all.
    ///
    /// # Errors
    ///
    /// As every call: no controller, its refusal, and an answer that makes no sense. Names that
    /// do not exist are no error.
    pub fn resource_definitions(
        &self,
        only: &[ResourceName],
    ) -> Result<Vec<ResourceDefinition>, LinstorError> {
        let path = "/v1/resource-definitions?with_volume_definitions=true";
        self.read(filtered(path.to_owned(), "resource_definitions", only))
    }

    /// The resources of these definitions on every node, or all, with their volumes and layers.
    ///
    /// # Errors
    ///
    /// As every call. Names that do not exist are no error.
    pub fn resources(&self, only: &[ResourceName]) -> Result<Vec<Resource>, LinstorError> {
        self.read(filtered("/v1/view/resources".to_owned(), "resources", only))
    }

    /// The storage pools of these nodes, or all.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn storage_pools(&self, nodes: &[NodeName]) -> Result<Vec<StoragePool>, LinstorError> {
        self.read(filtered("/v1/view/storage-pools".to_owned(), "nodes", nodes))
    }

    /// All snapshots of a resource.
    ///
    /// # Errors
    ///
    /// As every call; a resource that does not exist is refused.
    pub fn snapshots(&self, resource: &ResourceName) -> Result<Vec<Snapshot>, LinstorError> {
        self.read(snapshots_of(resource))
    }

    /// A snapshot, if it exists.
    ///
    /// # Errors
    ///
    /// As every call; a resource that does not exist is refused.
    pub fn snapshot(
        &self,
        resource: &ResourceName,
        name: &SnapshotName,
    ) -> Result<Option<Snapshot>, LinstorError> {
        let question = Question::read(format!("{}/{name}", snapshots_of(resource)));
        let body = match self.ask(&question) {
            Err(error) if says_no_snapshot(&error) => return Ok(None),
            body => body?,
        };
        let snapshot: Snapshot = question.parse(&body)?;
        // What is decided by it had better be about it.
        match name.is(&snapshot.name) && resource.is(&snapshot.resource_name) {
            true => Ok(Some(snapshot)),
            false => Err(question.not_understood(&body, &"it is of another snapshot")),
        }
    }

    /// Takes snapshots of these resources, all under the same name: of several at one instant,
    /// while LINSTOR suspends their I/O on all of their nodes. Returns warnings.
    ///
    /// Where this fails, the snapshots may exist none the less, and may be deleted.
    ///
    /// # Errors
    ///
    /// No resource, one that is named twice, and as every call: above all a snapshot that exists
    /// already, and storage that has no snapshots.
    pub fn create_snapshots(
        &self,
        resources: &[ResourceName],
        own: &OwnSnapshot,
    ) -> Result<Vec<Message>, LinstorError> {
        let twice = |(at, resource): (usize, &ResourceName)| resources[..at].contains(resource);
        if resources.iter().enumerate().any(twice) {
            let why = "a resource is named twice for one snapshot".to_owned();
            return Err(LinstorError::Misuse(why));
        }
        match resources {
            [] => Err(LinstorError::Misuse("no resource is named for a snapshot".to_owned())),
            [resource] => self.create(snapshots_of(resource), &NewSnapshot::of(resource, own)),
            resources => {
                let new = resources.iter().map(|resource| NewSnapshot::of(resource, own));
                let snapshots = new.collect();
                self.create("/v1/actions/snapshot/multi".to_owned(), &NewSnapshots { snapshots })
            }
        }
    }

    /// The snapshot, once it is successful on all of its nodes.
    ///
    /// `pause` is called each time that it is not, with how often it was; it waits, and tells
    /// whether to go on.
    ///
    /// # Errors
    ///
    /// A snapshot that failed, that is not there (any more), or that `pause` gave up on, and as
    /// every call.
    pub fn wait_successful(
        &self,
        resource: &ResourceName,
        name: &SnapshotName,
        mut pause: impl FnMut(u32) -> bool,
    ) -> Result<Snapshot, LinstorError> {
        let (of, is) = (|| resource.clone(), || name.clone());
        for round in 1..=u32::MAX {
            let gone = || LinstorError::SnapshotGone { resource: of(), snapshot: is() };
            let snapshot = self.snapshot(resource, name)?.ok_or_else(gone)?;
            match snapshot.progress() {
                Progress::Successful => return Ok(snapshot),
                Progress::Deleting => return Err(gone()),
                Progress::Failed(flag) => {
                    let (resource, snapshot) = (of(), is());
                    return Err(LinstorError::SnapshotFailed { resource, snapshot, flag });
                }
                Progress::Pending if !pause(round) => break,
                Progress::Pending => {}
            }
        }
        Err(LinstorError::SnapshotPending { resource: of(), snapshot: is() })
    }

    /// Deletes a snapshot that was made here, on all nodes. Returns warnings, of which that it
    /// is not there is one.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn delete_snapshot(
        &self,
        resource: &ResourceName,
        own: &OwnSnapshot,
    ) -> Result<Vec<Message>, LinstorError> {
        let question = Question::delete(format!("{}/{}", snapshots_of(resource), own.name()));
        match self.change(&question) {
            Err(error) if says_no_snapshot(&error) => Ok(error.messages().cloned().collect()),
            changed => changed,
        }
    }

    fn read<T: DeserializeOwned>(&self, path: String) -> Result<T, LinstorError> {
        let question = Question::read(path);
        question.parse(&self.ask(&question)?)
    }

    fn create(&self, path: String, what: &impl Serialize) -> Result<Vec<Message>, LinstorError> {
        let body = serde_json::to_vec(what);
        let body = body.map_err(|error| LinstorError::Misuse(error.to_string()))?;
        self.change(&Question::create(path, body))
    }

    /// Makes a change. That the status is one of success does not say that all of it was made.
    fn change(&self, question: &Question) -> Result<Vec<Message>, LinstorError> {
        let body = self.ask(question)?;
        let messages = answer::messages(&body);
        let messages = messages.map_err(|error| question.not_understood(&body, &error))?;
        if messages.iter().any(|message| message.level() == Level::Error) {
            return Err(LinstorError::Refused {
                request: question.to_string(),
                status: 200,
                messages,
            });
        }
        Ok(messages.into_iter().filter(|message| message.level() == Level::Warning).collect())
    }
}

/// Whether all that is wrong is that there is no such snapshot.
fn says_no_snapshot(error: &LinstorError) -> bool {
    error.messages().next().is_some() && error.messages().all(Message::is_no_snapshot)
}

fn snapshots_of(resource: &ResourceName) -> String {
    format!("/v1/resource-definitions/{resource}/snapshots")
}

/// The path of a list with only these names. Names need no escape: they are checked.
fn filtered(mut path: String, parameter: &str, only: &[impl fmt::Display]) -> String {
    for name in only {
        let before = if path.contains('?') { '&' } else { '?' };
        path.push_str(&format!("{before}{parameter}={name}"));
    }
    path
}
