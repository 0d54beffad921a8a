//! What the controller manages, and what it answers about it, in LINSTOR's shape.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The bits of an error, of a warning, and of a snapshot that is created or deleted.
const ERROR: u64 = 0xC000_0000_0000_0000;
const WARNING: u64 = 0x8000_0000_0000_0000;
const CREATE_SNAPSHOT: u64 = 0x0000_0000_010C_0000;
const DELETE_SNAPSHOT: u64 = 0x0000_0000_030C_0000;
/// LINSTOR's numbers for what can happen here.
const CREATED: u64 = 1;
const DELETED: u64 = 2;
const INVALID_SNAPSHOT_NAME: u64 = 218;
const NO_DEFINITION: u64 = 301;
const NO_RESOURCE: u64 = 302;
const NO_SNAPSHOT: u64 = 315;
const DENIED_COMMAND: u64 = 412;
const SNAPSHOT_EXISTS: u64 = 514;
const NO_SNAPSHOTS_THERE: u64 = 994;
const NOT_CONNECTED: u64 = 995;
const UNKNOWN: u64 = 999;
const WARN_NOT_FOUND: u64 = 3000;
/// The time of the first snapshot, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_795_380_000_000;

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Value,
}

/// The nodes, their storage, and what is on it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Whether each is connected.
    nodes: BTreeMap<String, bool>,
    pools: Vec<Pool>,
    /// The sizes of the volumes of each, in KiB.
    definitions: BTreeMap<String, Vec<u64>>,
    resources: Vec<Placed>,
    snapshots: Vec<Taken>,
    /// How often a snapshot is looked at before it is successful.
    looks: u32,
}

#[derive(Clone, Debug)]
struct Pool {
    node: String,
    name: String,
    kind: String,
    /// What the node calls it.
    backing: String,
}

#[derive(Clone, Debug)]
struct Placed {
    definition: String,
    node: String,
    /// `None` without data.
    pool: Option<String>,
    /// Where DRBD's metadata are, if not with the data.
    metadata: Option<String>,
    flags: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Taken {
    definition: String,
    name: String,
    nodes: Vec<String>,
    sizes: Vec<u64>,
    looks_left: u32,
    failed: bool,
    unix_ms: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            pools: Vec::new(),
            definitions: BTreeMap::new(),
            resources: Vec::new(),
            snapshots: Vec::new(),
            looks: 1,
        }
    }

    /// With a node, which is connected.
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.insert(name.to_owned(), true);
        self
    }

    /// With a storage pool of a kind, such as `ZFS`, that the node calls `backing`.
    pub fn pool(mut self, node: &str, name: &str, kind: &str, backing: &str) -> Self {
        let [node, name, kind, backing] = [node, name, kind, backing].map(str::to_owned);
        self.pools.push(Pool { node, name, kind, backing });
        self
    }

    /// With a resource definition of volumes of these sizes in KiB.
    pub fn resource(mut self, name: &str, sizes_kib: &[u64]) -> Self {
        self.definitions.insert(name.to_owned(), sizes_kib.to_vec());
        self
    }

    /// With a resource in a storage pool.
    pub fn deploy(self, definition: &str, node: &str, pool: &str) -> Self {
        self.placed(definition, node, Some(pool), None, &[])
    }

    /// With a resource in a storage pool, and the metadata of DRBD in another.
    pub fn deploy_apart(self, definition: &str, node: &str, pool: &str, metadata: &str) -> Self {
        self.placed(definition, node, Some(pool), Some(metadata), &[])
    }

    /// With a resource that has no data on its node.
    pub fn diskless(self, definition: &str, node: &str) -> Self {
        self.placed(definition, node, None, None, &["DISKLESS", "DRBD_DISKLESS"])
    }

    /// With a snapshot that is as it was created some time ago.
    pub fn snapshot(mut self, definition: &str, name: &str) -> Self {
        let (nodes, sizes) = (self.nodes_with(definition), self.sizes(definition));
        let [definition, name] = [definition, name].map(str::to_owned);
        let (looks_left, failed, unix_ms) = (0, false, EPOCH_MS);
        self.snapshots.push(Taken { definition, name, nodes, sizes, looks_left, failed, unix_ms });
        self
    }

    /// With snapshots that are successful only after so many looks.
    pub const fn looks(mut self, looks: u32) -> Self {
        self.looks = looks;
        self
    }

    fn placed(
        mut self,
        definition: &str,
        node: &str,
        pool: Option<&str>,
        metadata: Option<&str>,
        flags: &[&str],
    ) -> Self {
        let [definition, node] = [definition, node].map(str::to_owned);
        let [pool, metadata] = [pool, metadata].map(|name| name.map(str::to_owned));
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.resources.push(Placed { definition, node, pool, metadata, flags });
        self
    }

    /// Connects a node or loses it.
    pub fn connect(&mut self, node: &str, connected: bool) {
        self.nodes.insert(node.to_owned(), connected);
    }

    /// The names of all snapshots of a resource, in order.
    pub fn snapshot_names(&self, definition: &str) -> Vec<String> {
        let of = self.snapshots.iter().filter(|s| s.definition == definition);
        of.map(|s| s.name.clone()).collect()
    }

    /// Resource and name of every snapshot.
    pub(super) fn all_snapshots(&self) -> BTreeSet<(String, String)> {
        self.snapshots.iter().map(|s| (s.definition.clone(), s.name.clone())).collect()
    }

    fn sizes(&self, definition: &str) -> Vec<u64> {
        self.definitions.get(definition).cloned().unwrap_or_default()
    }

    /// The nodes that have the data.
    fn nodes_with(&self, definition: &str) -> Vec<String> {
        let of = self.resources.iter().filter(|r| r.definition == definition && r.pool.is_some());
        of.map(|r| r.node.clone()).collect()
    }

    /// Does what is asked, and answers.
    pub(super) fn reply(
        &mut self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        body: Option<&Value>,
    ) -> Reply {
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        let filter = |name: &str| {
            let named = query.iter().filter(|(parameter, _)| parameter == name);
            let values: Vec<_> = named.map(|(_, value)| value.to_lowercase()).collect();
            move |value: &str| values.is_empty() || values.contains(&value.to_lowercase())
        };
        match (method, &parts[..]) {
            ("GET", ["v1", "controller", "version"]) => ok(version()),
            ("GET", ["v1", "resource-definitions"]) => {
                let with_volumes = query
                    .iter()
                    .any(|(name, value)| name == "with_volume_definitions" && value == "true");
                ok(self.list_definitions(&filter("resource_definitions"), with_volumes))
            }
            ("GET", ["v1", "view", "resources"]) => {
                ok(self.list_resources(&filter("nodes"), &filter("resources")))
            }
            ("GET", ["v1", "view", "storage-pools"]) => ok(self.list_pools(&filter("nodes"))),
            ("GET", ["v1", "resource-definitions", resource, "snapshots", rest @ ..]) => {
                self.look_at_snapshots(resource, rest.first().copied())
            }
            ("POST", ["v1", "resource-definitions", resource, "snapshots"]) => {
                let name = body.and_then(|body| body["name"].as_str());
                self.take(&[(resource, name.unwrap_or_default())])
            }
            ("POST", ["v1", "actions", "snapshot", "multi"]) => {
                let new = body.and_then(|body| body["snapshots"].as_array()).into_iter().flatten();
                let text = |new: &'_ Value, name| new[name].as_str().unwrap_or_default().to_owned();
                let new: Vec<_> =
                    new.map(|new| (text(new, "resource_name"), text(new, "name"))).collect();
                let new: Vec<_> = new.iter().map(|(r, n)| (r.as_str(), n.as_str())).collect();
                self.take(&new)
            }
            ("DELETE", ["v1", "resource-definitions", resource, "snapshots", name]) => {
                self.delete(resource, name)
            }
            _ => refused(UNKNOWN, &format!("There is nothing at {method} {path}.")),
        }
    }

    /// The name of a definition as it is written.
    fn definition(&self, name: &str) -> Result<String, Reply> {
        let found = self.definitions.keys().find(|d| d.eq_ignore_ascii_case(name));
        found.cloned().ok_or_else(|| {
            refused(NO_DEFINITION, &format!("There is no resource definition '{name}'."))
        })
    }

    fn list_definitions(&self, only: &dyn Fn(&str) -> bool, with_volumes: bool) -> Value {
        let listed = self.definitions.iter().filter(|(name, _)| only(name));
        let shown = listed.map(|(name, sizes)| {
            let mut shown = json!({
                "name": name, "props": { "Aux/made-by": "a test" }, "uuid": uuid(0),
                "layer_data": [{ "type": "DRBD", "data": { "peer_slots": 7 } }],
                "resource_group_name": "DfltRscGrp"
            });
            if with_volumes {
                shown["volume_definitions"] = volume_definitions(sizes);
            }
            shown
        });
        shown.collect()
    }

    fn list_resources(
        &self,
        nodes: &dyn Fn(&str) -> bool,
        resources: &dyn Fn(&str) -> bool,
    ) -> Value {
        let listed = self.resources.iter().filter(|r| nodes(&r.node) && resources(&r.definition));
        listed.map(|resource| self.show_resource(resource)).collect()
    }

    fn show_resource(&self, resource: &Placed) -> Value {
        let node_id = self.nodes.keys().position(|node| *node == resource.node).unwrap_or(0);
        let sizes = self.sizes(&resource.definition);
        let volumes: Vec<_> = (0..)
            .zip(&sizes)
            .map(|(number, size)| self.show_volume(resource, number, *size))
            .collect();
        let mut children = Vec::new();
        if resource.pool.is_some() {
            children.push(self.show_storage(resource, resource.pool.as_deref(), "", &sizes));
        }
        if let Some(metadata) = &resource.metadata {
            children.push(self.show_storage(resource, Some(metadata), ".meta", &sizes));
        }
        let drbd: Vec<_> =
            (0..).zip(&sizes).map(|(n, size)| self.show_drbd_volume(resource, n, *size)).collect();
        json!({
            "name": resource.definition,
            "node_name": resource.node,
            "props": {},
            "flags": resource.flags,
            "uuid": uuid(node_id + 1),
            "create_timestamp": EPOCH_MS,
            "state": { "in_use": false },
            "layer_object": {
                "type": "DRBD",
                "resource_name_suffix": "",
                "children": children,
                "drbd": {
                    "node_id": node_id, "peer_slots": 7, "al_stripes": 1, "al_size": 32,
                    "drbd_volumes": drbd, "promotion_score": 10_102, "may_promote": true
                }
            },
            "volumes": volumes
        })
    }

    fn find_pool(&self, node: &str, name: Option<&str>) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.node == node && Some(pool.name.as_str()) == name)
    }

    fn show_volume(&self, resource: &Placed, number: usize, size: u64) -> Value {
        let pool = self.find_pool(&resource.node, resource.pool.as_deref());
        json!({
            "volume_number": number,
            "storage_pool_name": pool.map_or("DfltDisklessStorPool", |pool| &pool.name),
            "provider_kind": pool.map_or("DISKLESS", |pool| &pool.kind),
            "device_path": format!("/dev/drbd{}", 1000 + number),
            "allocated_size_kib": if pool.is_some() { size / 2 } else { 0 },
            "usable_size_kib": size,
            "props": {},
            "state": { "disk_state": if pool.is_some() { "UpToDate" } else { "Diskless" } },
            "uuid": uuid(100 + number)
        })
    }

    fn show_drbd_volume(&self, resource: &Placed, number: usize, size: u64) -> Value {
        let mut shown = json!({
            "drbd_volume_definition": { "volume_number": number, "minor_number": 1000 + number },
            "device_path": format!("/dev/drbd{}", 1000 + number),
            "allocated_size_kib": size + 4,
            "usable_size_kib": size,
            "disk_state": if resource.pool.is_some() { "UpToDate" } else { "Diskless" }
        });
        if let Some(pool) = self.find_pool(&resource.node, resource.pool.as_deref()) {
            shown["backing_device"] = json!(pool.device(&resource.definition, "", number));
            shown["meta_disk"] = json!("internal");
        }
        if let Some(pool) = self.find_pool(&resource.node, resource.metadata.as_deref()) {
            shown["meta_disk"] = json!(pool.device(&resource.definition, ".meta", number));
            shown["ext_meta_stor_pool"] = json!(pool.name);
        }
        shown
    }

    fn show_storage(
        &self,
        resource: &Placed,
        pool: Option<&str>,
        suffix: &str,
        sizes: &[u64],
    ) -> Value {
        let pool = self.find_pool(&resource.node, pool);
        let volumes = (0..).zip(sizes).map(|(number, size)| {
            json!({
                "volume_number": number,
                "device_path": pool.map(|p| p.device(&resource.definition, suffix, number)),
                "allocated_size_kib": size / 2,
                "usable_size_kib": size + 4,
                "disk_state": "[]"
            })
        });
        json!({
            "type": "STORAGE",
            "resource_name_suffix": suffix,
            "storage": { "storage_volumes": volumes.collect::<Vec<_>>() }
        })
    }

    fn list_pools(&self, nodes: &dyn Fn(&str) -> bool) -> Value {
        let listed = self.pools.iter().filter(|pool| nodes(&pool.node));
        let shown = listed.map(|pool| {
            json!({
                "storage_pool_name": pool.name,
                "node_name": pool.node,
                "provider_kind": pool.kind,
                "props": { "StorDriver/StorPoolName": pool.backing },
                "static_traits": { "SupportsSnapshots": pool.has_snapshots().to_string() },
                "free_capacity": 1 << 20,
                "total_capacity": 1 << 21,
                "free_space_mgr_name": format!("{}:{}", pool.node, pool.name),
                "uuid": uuid(200),
                "supports_snapshots": pool.has_snapshots(),
                "external_locking": false
            })
        });
        shown.collect()
    }

    /// All snapshots of a resource or one, each of which is a look nearer to success.
    fn look_at_snapshots(&mut self, resource: &str, name: Option<&str>) -> Reply {
        let definition = match self.definition(resource) {
            Ok(definition) => definition,
            Err(reply) => return reply,
        };
        let mut shown = Vec::new();
        for snapshot in self.snapshots.iter_mut().filter(|s| s.definition == definition) {
            if name.is_none_or(|name| name.eq_ignore_ascii_case(&snapshot.name)) {
                let lost = snapshot.nodes.iter().any(|node| self.nodes.get(node) != Some(&true));
                snapshot.failed |= lost && snapshot.looks_left > 0;
                shown.push(snapshot.show());
                snapshot.looks_left = snapshot.looks_left.saturating_sub(1);
            }
        }
        match (name, shown.pop()) {
            (None, last) => ok(shown.into_iter().chain(last).collect()),
            (Some(_), Some(snapshot)) => ok(snapshot),
            (Some(name), None) => {
                refused(NO_SNAPSHOT, &format!("There is no snapshot '{name}' of '{resource}'."))
            }
        }
    }

    /// Takes snapshots of all of these resources or of none.
    fn take(&mut self, new: &[(&str, &str)]) -> Reply {
        let mut taken = Vec::new();
        for (resource, name) in new {
            match self.check_snapshot(resource, name) {
                Ok(snapshot) => taken.push(snapshot),
                Err(reply) => return reply,
            }
        }
        let said = taken.iter().map(|snapshot| {
            let Taken { definition, name, .. } = snapshot;
            let text = format!("The snapshot '{name}' of '{definition}' is registered.");
            message(CREATED | CREATE_SNAPSHOT, &text, &[("RscDfn", definition), ("Snapshot", name)])
        });
        let body = said.collect();
        self.snapshots.append(&mut taken);
        Reply { status: 201, body }
    }

    fn check_snapshot(&self, resource: &str, name: &str) -> Result<Taken, Reply> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts || !(2..=48).contains(&name.len()) || !name.chars().all(legal) {
            let text = format!("'{name}' is no name of a snapshot.");
            return Err(refused(INVALID_SNAPSHOT_NAME, &text));
        }
        let definition = self.definition(resource)?;
        let same = |s: &&Taken| s.definition == definition && s.name.eq_ignore_ascii_case(name);
        if self.snapshots.iter().any(|s| same(&s)) {
            let text = format!("'{definition}' has a snapshot '{name}' already.");
            return Err(refused(SNAPSHOT_EXISTS, &text));
        }
        let nodes = self.nodes_with(&definition);
        if nodes.is_empty() {
            return Err(refused(NO_RESOURCE, &format!("'{definition}' is on no node.")));
        }
        for of in self.resources.iter().filter(|r| r.definition == definition) {
            let pool = self.find_pool(&of.node, of.pool.as_deref());
            if let Some(pool) = pool.filter(|pool| !pool.has_snapshots()) {
                let text = format!("Storage of kind '{}' has no snapshots.", pool.kind);
                return Err(refused(NO_SNAPSHOTS_THERE, &text));
            }
        }
        if let Some(lost) = nodes.iter().find(|node| self.nodes.get(*node) != Some(&true)) {
            return Err(refused(NOT_CONNECTED, &format!("The satellite '{lost}' is lost.")));
        }
        Ok(Taken {
            sizes: self.sizes(&definition),
            definition,
            name: name.to_owned(),
            nodes,
            looks_left: self.looks,
            failed: false,
            unix_ms: EPOCH_MS + 1000 * self.snapshots.len() as u64,
        })
    }

    fn delete(&mut self, resource: &str, name: &str) -> Reply {
        let definition = match self.definition(resource) {
            Ok(definition) => definition,
            Err(reply) => return reply,
        };
        let before = self.snapshots.len();
        self.snapshots.retain(|s| s.definition != definition || !s.name.eq_ignore_ascii_case(name));
        let (number, text) = match before > self.snapshots.len() {
            true => (DELETED | DELETE_SNAPSHOT, format!("The snapshot '{name}' is deleted.")),
            false => (
                WARNING | DELETE_SNAPSHOT | WARN_NOT_FOUND,
                format!("There is no snapshot '{name}' of '{definition}'."),
            ),
        };
        ok(json!([message(number, &text, &[("RscDfn", &definition), ("Snapshot", name)])]))
    }
}

impl Pool {
    fn has_snapshots(&self) -> bool {
        !["LVM", "DISKLESS"].contains(&self.kind.as_str())
    }

    fn device(&self, resource: &str, suffix: &str, volume: usize) -> String {
        let storage = self.backing.split('/').next().unwrap_or_default();
        let name = format!("{resource}{suffix}_{volume:05}");
        match self.kind.as_str() {
            "ZFS" | "ZFS_THIN" => format!("/dev/zvol/{}/{name}", self.backing),
            "FILE" | "FILE_THIN" => format!("/dev/loop{volume}"),
            _ => format!("/dev/{storage}/{name}"),
        }
    }
}

impl Taken {
    fn show(&self) -> Value {
        let done = self.looks_left == 0 && !self.failed;
        let nodes = self.nodes.iter().map(|node| {
            let mut shown = json!({
                "snapshot_name": self.name, "node_name": node, "flags": [], "uuid": uuid(300)
            });
            if done {
                shown["create_timestamp"] = json!(self.unix_ms);
            }
            shown
        });
        let flags = match (self.failed, done) {
            (true, _) => json!(["FAILED_DISCONNECT"]),
            (_, true) => json!(["SUCCESSFUL"]),
            _ => json!([]),
        };
        json!({
            "name": self.name,
            "resource_name": self.definition,
            "nodes": self.nodes,
            "props": {},
            "flags": flags,
            "volume_definitions": volume_definitions(&self.sizes),
            "uuid": uuid(300),
            "snapshots": nodes.collect::<Vec<_>>()
        })
    }
}

fn volume_definitions(sizes: &[u64]) -> Value {
    let shown = sizes.iter().enumerate();
    shown.map(|(number, size)| json!({ "volume_number": number, "size_kib": size })).collect()
}

fn version() -> Value {
    json!({
        "version": "1.34.0", "git_hash": "0000000000000000000000000000000000000000",
        "build_time": "2026-11-22T20:40:00+00:00", "rest_api_version": "1.28.0"
    })
}

fn uuid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn ok(body: Value) -> Reply {
    Reply { status: 200, body }
}

fn message(number: u64, text: &str, about: &[(&str, &str)]) -> Value {
    let about: Map<_, _> = about.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    json!({ "ret_code": number.cast_signed(), "message": text, "obj_refs": about })
}

/// An error, with the status that LINSTOR gives to its number.
fn refused(number: u64, text: &str) -> Reply {
    let status = match number {
        300..=399 => 404,
        400..=499 => 403,
        _ => 500,
    };
    let mut said = message(number | ERROR, text, &[]);
    said["cause"] = json!("A test asked for it.");
    said["correction"] = json!("Ask for something else.");
    said["error_report_ids"] = json!(["5F000000-00000-000000"]);
    Reply { status, body: json!([said]) }
}

/// What LINSTOR answers to whom it does not know.
pub(super) fn unauthorized() -> Reply {
    Reply { status: 401, ..refused(DENIED_COMMAND, "Unauthorized") }
}
