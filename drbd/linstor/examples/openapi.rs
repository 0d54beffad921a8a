//! Holds the client, the controller of the tests and the answers beside the tests against
//! LINSTOR's own description of its interface, which is an OpenAPI document:
//!
//! ```text
//! cargo run -p driftline-linstor --example openapi --features testing -- rest_v1_openapi.yaml
//! ```
//!
//! Without an argument the variable `DRIFTLINE_LINSTOR_OPENAPI` names the document.
//!
//! Every request and answer of a session with all calls is looked up in the description, and so
//! is every field that the client reads. What the description lacks, or has as another type, is
//! an error; what it does not promise but the client needs is told. The document may be JSON, or
//! YAML where python3 with its module yaml is there to read it.

use std::{collections::BTreeSet, env, error::Error, fs, path::Path, process::Command, slice};

use driftline_linstor::{
    Client, ClientConfig, Controller, OwnNames,
    testing::{Cluster, Exchange, Fake},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What becomes of a document that is YAML. Dates in its examples become text.
const TO_JSON: &str = "import json, sys, yaml; \
                       json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout, default=str)";
/// References within references, at most.
const DEPTH_MAX: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).or_else(|| env::var_os("DRIFTLINE_LINSTOR_OPENAPI"));
    let path = path.ok_or("name the file of LINSTOR's OpenAPI description")?;
    let mut check = Check { document: read(Path::new(&path))?, ..Check::default() };
    let fake = session(&mut check)?;
    for exchange in &fake.exchanges() {
        check.exchange(exchange);
    }
    for (file, schema) in [
        (include_str!("../tests/golden/resources.json"), "ResourceWithVolumes"),
        (include_str!("../tests/golden/storage-pools.json"), "StoragePool"),
    ] {
        let values: Vec<Value> = serde_json::from_str(file)?;
        for value in &values {
            check.named(value, schema, &format!("golden {schema}"), Nulls::Wrong);
        }
    }
    for line in &check.told {
        println!("note: {line}");
    }
    for line in &check.wrong {
        println!("wrong: {line}");
    }
    println!(
        "{} requests, {} values, {} fields: {} wrong",
        fake.exchanges().len(),
        check.values,
        check.fields,
        check.wrong.len()
    );
    if check.wrong.is_empty() { Ok(()) } else { Err("the description differs".into()) }
}

fn read(path: &Path) -> Result<Value, Box<dyn Error>> {
    if let Ok(document) = serde_json::from_slice(&fs::read(path)?) {
        return Ok(document);
    }
    let output = Command::new("python3").args(["-c", TO_JSON]).arg(path).output()?;
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

/// Every call, answered well and with an error. What the client reads is written down again,
/// which shows every field that it knows.
fn session(check: &mut Check) -> Result<Fake, Box<dyn Error>> {
    let cluster = Cluster::new()
        .node("alpha")
        .node("beta")
        .pool("alpha", "thin", "LVM_THIN", "vg0/pool0")
        .pool("alpha", "tank", "ZFS", "tank")
        .pool("beta", "thin", "LVM_THIN", "vg0/pool0")
        .resource("web", &[1024, 2048])
        .deploy("web", "beta", "thin")
        .deploy_apart("web", "alpha", "thin", "tank")
        .resource("db", &[1024])
        .deploy("db", "beta", "thin")
        .diskless("db", "alpha");
    let fake = Fake::start(cluster);
    let client = Client::new(&ClientConfig::new(Controller::list(&fake.url())?))?;
    let (web, db, none) = ("web".parse()?, "db".parse()?, "none".parse()?);
    let own = [1, 2].map(|at| OwnNames::new([0; 4]).snapshot(at));

    check.read("ControllerVersion", &[client.version()?])?;
    check.read("ResourceDefinition", &client.resource_definitions(slice::from_ref(&web))?)?;
    check.read("ResourceWithVolumes", &client.resources(&[])?)?;
    client.resources(slice::from_ref(&web))?;
    check.read("StoragePool", &client.storage_pools(&["alpha".parse()?])?)?;

    client.create_snapshots(slice::from_ref(&web), &own[0])?;
    client.create_snapshots(&[web.clone(), db], &own[1])?;
    check.read("Snapshot", &[client.wait_successful(&web, own[0].name(), |_| true)?])?;
    check.read("Snapshot", &client.snapshots(&web)?)?;
    let refused = client.create_snapshots(slice::from_ref(&web), &own[0]);
    let refused = refused.err().ok_or("it exists")?;
    check.read("ApiCallRc", &refused.messages().cloned().collect::<Vec<_>>())?;
    client.create_snapshots(slice::from_ref(&none), &own[0]).err().ok_or("there is none")?;
    client.delete_snapshot(&web, &own[0])?;
    check.read("ApiCallRc", &client.delete_snapshot(&web, &own[0])?)?;
    Ok(fake)
}

/// What `null` is in a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// Nothing that may be sent.
    Wrong,
    /// A field that is known, but was not there.
    Absent,
}

#[derive(Default)]
struct Check {
    document: Value,
    /// What differs.
    wrong: BTreeSet<String>,
    /// What is not promised.
    told: BTreeSet<String>,
    values: usize,
    fields: usize,
}

impl Check {
    fn wrong(&mut self, what: String) {
        self.wrong.insert(what);
    }

    /// What a reference leads to, and all that it leads to in turn.
    fn resolve<'a>(&'a self, mut value: &'a Value) -> &'a Value {
        for _ in 0..DEPTH_MAX {
            let Some(reference) = value["$ref"].as_str() else { break };
            value =
                self.document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        }
        value
    }

    /// A request and its answer, against the operation that they are of.
    fn exchange(&mut self, exchange: &Exchange) {
        let label = format!("{} {}", exchange.method, exchange.path);
        let Some((template, item)) = self.path(&exchange.path) else {
            return self.wrong(format!("{label}: there is no such path"));
        };
        let operation = item[exchange.method.to_lowercase()].clone();
        if operation.is_null() {
            return self.wrong(format!("{template}: there is no {}", exchange.method));
        }
        let label = format!("{} {template}", exchange.method);
        for (name, value) in &exchange.query {
            self.parameter(&item, &operation, name, value, &label);
        }
        let body = operation.pointer("/requestBody/content/application~1json/schema");
        match (&exchange.request, body.cloned()) {
            (Some(request), Some(schema)) => {
                self.value(request, &schema, &format!("{label} request"), Nulls::Wrong);
            }
            (Some(_), None) => self.wrong(format!("{label}: it takes no body")),
            (None, _) => {}
        }
        self.answer(exchange, &operation, &label);
    }

    fn answer(&mut self, exchange: &Exchange, operation: &Value, label: &str) {
        let status = exchange.status.to_string();
        let described = self.resolve(&operation["responses"][&status]);
        let schema = described.pointer("/content/application~1json/schema").cloned();
        let label = format!("{label} answer {status}");
        match schema {
            Some(schema) => {
                // By the description some errors are a list and some a message alone. The client
                // takes both; a controller is known to send lists.
                let list = self.resolve(&schema)["type"] == "array";
                if exchange.status >= 400 && exchange.answer.is_array() && !list {
                    self.told.insert(format!("{label}: described as one message, sent as a list"));
                    self.named(&exchange.answer, "ApiCallRcList", &label, Nulls::Wrong);
                } else {
                    self.value(&exchange.answer, &schema, &label, Nulls::Wrong);
                }
            }
            None if exchange.status >= 400 => {
                self.told.insert(format!("{label}: the status is not described"));
                self.named(&exchange.answer, "ApiCallRcList", &label, Nulls::Wrong);
            }
            None => self.wrong(format!("{label}: the status is not described")),
        }
    }

    /// The described path that this one is of.
    fn path(&self, path: &str) -> Option<(String, Value)> {
        let parts: Vec<_> = path.split('/').collect();
        let of = |template: &str| {
            let described: Vec<_> = template.split('/').collect();
            let same = |(d, p): (&&str, &&str)| d == p || (d.starts_with('{') && !p.is_empty());
            described.len() == parts.len() && described.iter().zip(&parts).all(same)
        };
        let found = self.document["paths"].as_object()?.iter().find(|(path, _)| of(path));
        found.map(|(template, item)| (template.clone(), item.clone()))
    }

    fn parameter(&mut self, item: &Value, operation: &Value, name: &str, value: &str, label: &str) {
        let all = [&item["parameters"], &operation["parameters"]];
        let all = all.into_iter().filter_map(Value::as_array).flatten();
        let is_it = |p: &&Value| p["in"] == "query" && p["name"] == name;
        let Some(found) = all.map(|p| self.resolve(p)).find(is_it).cloned() else {
            return self.wrong(format!("{label}: there is no parameter {name}"));
        };
        let schema = match self.resolve(&found["schema"]) {
            array if array["type"] == "array" => self.resolve(&array["items"]).clone(),
            schema => schema.clone(),
        };
        let fits = match schema["type"].as_str() {
            Some("string") => true,
            Some("boolean") => ["true", "false"].contains(&value),
            Some("integer") => value.parse::<i64>().is_ok(),
            _ => false,
        };
        if !fits {
            self.wrong(format!("{label}: the parameter {name} is no {schema}"));
        }
    }

    fn named(&mut self, value: &Value, schema: &str, label: &str, nulls: Nulls) {
        let schema = self.document["components"]["schemas"][schema].clone();
        self.value(value, &schema, label, nulls);
    }

    /// A value against a schema.
    fn value(&mut self, value: &Value, schema: &Value, label: &str, nulls: Nulls) {
        self.values += 1;
        let schema = self.resolve(schema).clone();
        if value.is_null() && nulls == Nulls::Absent {
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            self.wrong(format!("{label}: {value} is none of {allowed:?}"));
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            return self.one_of(value, choices, label, nulls);
        }
        let kind = schema["type"].as_str();
        match (value, kind) {
            (Value::Array(values), Some("array")) => {
                for value in values {
                    self.value(value, &schema["items"], &format!("{label}[]"), nulls);
                }
            }
            (Value::Object(fields), _) if kind.is_none_or(|kind| kind == "object") => {
                self.object(fields, &schema, label, nulls);
            }
            (Value::String(_), Some("string")) | (Value::Bool(_), Some("boolean")) => {}
            (Value::Number(number), Some("integer")) if fits(number, &schema) => {}
            (Value::Number(_), Some("number")) => {}
            _ => self.wrong(format!("{label}: {value} is not of type {}", schema["type"])),
        }
    }

    /// A value against schemas of which one must take it.
    fn one_of(&mut self, value: &Value, choices: &[Value], label: &str, nulls: Nulls) {
        let before = self.wrong.clone();
        for choice in choices {
            self.wrong.clone_from(&before);
            self.value(value, choice, label, nulls);
            if self.wrong == before {
                return;
            }
        }
        self.wrong = before;
        self.wrong(format!("{label}: {value} is none of what it can be"));
    }

    fn object(&mut self, fields: &Map<String, Value>, schema: &Value, label: &str, nulls: Nulls) {
        let (properties, required) = self.properties(schema);
        let others = self.resolve(&schema["additionalProperties"]).clone();
        for (name, value) in fields {
            self.fields += 1;
            let label = format!("{label}.{name}");
            match properties.get(name) {
                Some(property) => self.value(value, property, &label, nulls),
                None if others.is_object() => self.value(value, &others, &label, nulls),
                None => self.wrong(format!("{label}: there is no such field")),
            }
        }
        for name in required.iter().filter(|name| !fields.contains_key(*name)) {
            // The client need not know what must be there.
            if nulls == Nulls::Wrong {
                self.wrong(format!("{label}: {name} must be there"));
            }
        }
    }

    /// The fields of a schema and of all that it is made of, and those that must be there.
    fn properties(&self, schema: &Value) -> (Map<String, Value>, BTreeSet<String>) {
        let schema = self.resolve(schema);
        let mut properties = schema["properties"].as_object().cloned().unwrap_or_default();
        let required = schema["required"].as_array().into_iter().flatten();
        let mut required: BTreeSet<_> =
            required.filter_map(Value::as_str).map(str::to_owned).collect();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            let (more, needed) = self.properties(part);
            properties.extend(more);
            required.extend(needed);
        }
        (properties, required)
    }

    /// What the client has read, against the schema that it is of. A field at its top that the
    /// client cannot do without, but that the description does not promise, is told.
    fn read<T: Serialize + DeserializeOwned>(
        &mut self,
        schema: &str,
        values: &[T],
    ) -> Result<(), Box<dyn Error>> {
        let described = self.document["components"]["schemas"][schema].clone();
        let (_, pins) = self.properties(&described);
        for value in values {
            let value = serde_json::to_value(value)?;
            self.named(&value, schema, &format!("the client's {schema}"), Nulls::Absent);
            let fields = value.as_object().ok_or("it is no object")?;
            for name in fields.keys().filter(|name| !pins.contains(*name)) {
                let mut without = fields.clone();
                without.remove(name);
                if serde_json::from_value::<T>(without.into()).is_err() {
                    self.told.insert(format!("{schema}.{name} is needed, and not promised"));
                }
            }
        }
        Ok(())
    }
}

/// Whether an integer is one of the format that is described.
fn fits(number: &serde_json::Number, schema: &Value) -> bool {
    match schema["format"].as_str() {
        Some("int32") => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        _ => number.is_i64(),
    }
}
