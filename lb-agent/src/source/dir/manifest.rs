// SPDX-License-Identifier: MIT OR Apache-2.0
//! One manifest file, from text to objects. JSON is YAML, so one parser reads both.
//!
//! In: the text. Out: its objects with the defaults that an API server would have filled in, and what is wrong with the
//! rest, by line. Pure; it must not know of files.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_saphyr::Spanned;

use crate::source::{Object, ObjectId, failover};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// Objects of the kinds that Shunt reads.
    pub(super) objects: BTreeMap<ObjectId, Object>,
    /// Documents and list items that could not be read.
    pub(super) faults: Vec<Fault>,
    /// Objects that are good, but for want of an API server don't do what they seem to say.
    pub(super) warnings: Vec<Fault>,
}

/// Something wrong in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Line in the file, from 1.
    pub(super) line: u64,
    /// Number of the YAML document in the file, from 1.
    pub(super) document: usize,
    /// What is wrong.
    pub(super) cause: String,
    /// What its author can do.
    pub(super) remedy: &'static str,
}

const MEND_SYNTAX: &str = "mend it";
const NAME_KIND: &str = "write a Kubernetes object, with apiVersion and kind";
const NAME_OBJECT: &str = "write metadata.name";
const RENAME_OBJECT: &str = "remove or rename one of the two; the first one is in force";
const WRITE_ADDRESS: &str = "write spec.clusterIP: in a directory nobody allocates one";
const WRITE_SERVICE_NAME: &str = "write the label kubernetes.io/service-name: it says whose endpoints these are";
const WRITE_NODE_PORT: &str = "write nodePort: in a directory nobody allocates one";

/// Reads a file.
pub(super) fn parse(text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    for document in split(text) {
        if let Err(fault) = read_document(&document, &mut manifest) {
            manifest.faults.push(fault);
        }
    }
    manifest
}

/// One document of a file.
struct Document<'a> {
    text: &'a str,
    /// Line in the file of its first line, from 1.
    first_line: u64,
    /// From 1.
    number: usize,
}

/// Splits at `---`, which at the start of a line can be nothing but a marker (YAML 1.2.2 section 9.1.2), so that each
/// document stands for itself and a broken one spoils no other. Documents of comments and directives only are left out.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut starts = vec![(0, 1)];
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if offset != 0 && is_marker(line) {
            starts.push((offset, index as u64 + 1));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(offset, _)| *offset).chain([text.len()]);
    let pieces = starts.iter().zip(ends).map(|((start, line), end)| (&text[*start..end], *line));
    let documents = pieces.filter(|(piece, _)| !is_blank(piece)).enumerate();
    documents.map(|(index, (text, first_line))| Document { text, first_line, number: index + 1 }).collect()
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_blank(text: &str) -> bool {
    text.trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "...")
}

/// What every Kubernetes object begins with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// `kubectl get -o yaml` writes `v1/List`; the API itself `v1/ServiceList` and the like.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

/// The kinds of objects that are looked into.
#[derive(Clone, Copy)]
enum Shape {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    /// Items that say their kinds themselves, or are all of one.
    List(Option<&'static str>),
}

fn shape_of(api_version: &str, kind: &str) -> Option<Shape> {
    match (api_version, kind) {
        ("v1", "Service") => Some(Shape::Service),
        ("v1", "Node") => Some(Shape::Node),
        ("discovery.k8s.io/v1", "EndpointSlice") => Some(Shape::EndpointSlice),
        ("networking.k8s.io/v1", "ServiceCIDR") => Some(Shape::ServiceCidr),
        ("v1", "List") => Some(Shape::List(None)),
        ("v1", "ServiceList") => Some(Shape::List(Some("Service"))),
        ("v1", "NodeList") => Some(Shape::List(Some("Node"))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => Some(Shape::List(Some("EndpointSlice"))),
        ("networking.k8s.io/v1", "ServiceCIDRList") => Some(Shape::List(Some("ServiceCIDR"))),
        _ => None,
    }
}

impl Document<'_> {
    fn fault(&self, line_in_document: u64, cause: impl Into<String>, remedy: &'static str) -> Fault {
        Fault {
            line: self.first_line + line_in_document.max(1) - 1,
            document: self.number,
            cause: cause.into(),
            remedy,
        }
    }

    /// Reads the document as an object. Most have no fields that are null where something must be, and say by line what is
    /// wrong: only what can't be read so is read as a tree first.
    fn decode_object<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        self.decode().or_else(|fault| {
            let mut tree: serde_json::Value = self.decode()?;
            drop_nulls(&mut tree);
            serde_json::from_value(tree).map_err(|_| fault)
        })
    }

    fn decode<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        // No budget: the files are the operator's own and may hold tens of thousands of endpoints. Alias bombs stay bounded.
        let options = serde_saphyr::options! { budget: None, with_snippet: false };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let text = error.to_string();
            let Some(place) = error.location() else { return self.fault(1, text, MEND_SYNTAX) };
            // The place is counted from the start of the document; the reader looks for it in the file.
            let suffix = format!(" at line {}, column {}", place.line(), place.column());
            self.fault(place.line(), text.strip_suffix(&suffix).unwrap_or(&text), MEND_SYNTAX)
        })
    }
}

/// Leaves out the fields that are null, as kubectl and an API server do. An entry of a list is no field.
fn drop_nulls(tree: &mut serde_json::Value) {
    match tree {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(entries) => entries.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn read_document(document: &Document<'_>, manifest: &mut Manifest) -> Result<(), Fault> {
    let head: Head = document.decode()?;
    let (Some(api_version), Some(kind)) = (head.api_version, head.kind) else {
        return Err(document.fault(1, "it has no apiVersion or no kind", NAME_KIND));
    };
    let object = match shape_of(&api_version, &kind) {
        Some(Shape::Service) => Service::from(document.decode_object::<failover::Written>()?).into(),
        Some(Shape::EndpointSlice) => Object::EndpointSlice(document.decode_object()?),
        Some(Shape::Node) => Object::Node(document.decode_object()?),
        Some(Shape::ServiceCidr) => Object::ServiceCidr(document.decode_object()?),
        Some(Shape::List(kind)) => {
            read_list(document, &api_version, kind, manifest)?;
            return Ok(());
        }
        None => {
            tracing::debug!(api_version, kind, line = document.first_line, "not a kind that Shunt reads");
            return Ok(());
        }
    };
    add(object, document, 1, manifest)
}

/// An item that can't be read spoils no other.
fn read_list(
    document: &Document<'_>,
    api_version: &str,
    kind: Option<&str>,
    manifest: &mut Manifest,
) -> Result<(), Fault> {
    let list: List = document.decode()?;
    for item in list.items {
        let line = item.referenced.line();
        let read = read_item(item.value, api_version, kind);
        let added = match read {
            Ok(Some(object)) => add(object, document, line, manifest),
            Ok(None) => Ok(()),
            Err(cause) => Err(document.fault(line, cause, MEND_SYNTAX)),
        };
        manifest.faults.extend(added.err());
    }
    Ok(())
}

fn read_item(mut item: serde_json::Value, api_version: &str, kind: Option<&str>) -> Result<Option<Object>, String> {
    fn typed<T: DeserializeOwned>(item: serde_json::Value) -> Result<Box<T>, String> {
        serde_json::from_value(item).map(Box::new).map_err(|error| format!("list item: {error}"))
    }
    drop_nulls(&mut item);
    let text = |field| item.get(field).and_then(serde_json::Value::as_str);
    let api_version = text("apiVersion").unwrap_or(api_version);
    let Some(kind) = text("kind").or(kind) else { return Err("list item: it has no kind".into()) };
    match shape_of(api_version, kind) {
        Some(Shape::Service) => typed(item).map(|written: Box<failover::Written>| Some(Service::from(*written).into())),
        Some(Shape::EndpointSlice) => typed(item).map(Object::EndpointSlice).map(Some),
        Some(Shape::Node) => typed(item).map(Object::Node).map(Some),
        Some(Shape::ServiceCidr) => typed(item).map(Object::ServiceCidr).map(Some),
        Some(Shape::List(_)) | None => {
            tracing::debug!(api_version, kind, "not a kind that Shunt reads");
            Ok(None)
        }
    }
}

/// Takes an object in, as an API server would: with defaults, and each name just once.
fn add(mut object: Object, document: &Document<'_>, line: u64, manifest: &mut Manifest) -> Result<(), Fault> {
    if object.id().name.is_empty() {
        return Err(document.fault(line, "the object has no name", NAME_OBJECT));
    }
    match &mut object {
        Object::Service(service) => {
            default_namespace(&mut service.metadata);
            default_service(service);
            let warnings = warnings_of(service).into_iter();
            manifest.warnings.extend(warnings.map(|(cause, remedy)| document.fault(line, cause, remedy)));
        }
        // The API's default for a port's name; only an object that never met an API server has none (rule 11).
        Object::EndpointSlice(slice) => {
            default_namespace(&mut slice.metadata);
            let warnings = slice_warning(slice).into_iter();
            manifest.warnings.extend(warnings.map(|cause| document.fault(line, cause, WRITE_SERVICE_NAME)));
            for port in slice.ports.iter_mut().flatten() {
                port.name.get_or_insert_default();
            }
        }
        Object::Node(_) | Object::ServiceCidr(_) => {}
    }
    let id = object.id();
    if manifest.objects.contains_key(&id) {
        return Err(document.fault(line, format!("{id} stands twice in this file"), RENAME_OBJECT));
    }
    manifest.objects.insert(id, object);
    Ok(())
}

fn default_namespace(metadata: &mut ObjectMeta) {
    metadata.namespace.get_or_insert_with(|| "default".into());
}

/// `clusterIP` and `clusterIPs[0]` are one value; people write either.
fn default_service(service: &mut Service) {
    let Some(spec) = service.spec.as_mut() else { return };
    if spec.cluster_ip.as_ref().is_none_or(String::is_empty) {
        spec.cluster_ip = spec.cluster_ips.iter().flatten().next().cloned();
    }
}

/// What an API server would have allocated, and here is missing.
fn warnings_of(service: &Service) -> Vec<(String, &'static str)> {
    let mut warnings = Vec::new();
    let Some(spec) = &service.spec else { return warnings };
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let type_ = spec.type_.as_deref().unwrap_or_default();
    if type_ != "ExternalName" && spec.cluster_ip.as_ref().is_none_or(String::is_empty) {
        warnings.push((format!("Service {name} has no clusterIP and is not served"), WRITE_ADDRESS));
    }
    for port in spec.ports.iter().flatten().filter(|port| type_ == "NodePort" && port.node_port.is_none()) {
        warnings.push((format!("Service {name} has no nodePort for port {}", port.port), WRITE_NODE_PORT));
    }
    warnings
}

/// The label that a control plane would have written (rule 4).
fn slice_warning(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    let service = slice.metadata.labels.iter().flatten().find(|(label, _)| *label == "kubernetes.io/service-name");
    let is_missing = service.is_none_or(|(_, service)| service.is_empty());
    is_missing.then(|| format!("EndpointSlice {name} names no Service and is not used"))
}

#[cfg(test)]
mod tests;
