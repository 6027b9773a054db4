// SPDX-License-Identifier: MIT OR Apache-2.0
//! What people write into manifest files, and what is said when they err.

use super::*;
use crate::{model::Model, source::Event};

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.1
  ports:
  - port: 80
    targetPort: http
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
";

const SERVICE_CIDR: &str = "\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12]}
";

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n";

fn names(manifest: &Manifest) -> Vec<String> {
    manifest.objects.keys().map(ToString::to_string).collect()
}

/// Lines, documents and causes of what is wrong.
fn faults(text: &str) -> Vec<(u64, usize, String)> {
    parse(text).faults.into_iter().map(|fault| (fault.line, fault.document, fault.cause)).collect()
}

#[test]
fn several_documents_of_all_kinds() {
    let manifest =
        parse(&format!("# a comment\n---\n{WEB}---\n{SLICE}...\n---   # the node\n{NODE}---\n{SERVICE_CIDR}"));
    let expected = ["Service default/web", "EndpointSlice shop/web-1", "Node node-1", "ServiceCIDR kubernetes"];
    assert_eq!(names(&manifest), expected);
    assert_eq!((manifest.faults, manifest.warnings), (vec![], vec![]));
}

/// kubectl leaves them out, and so does an API server.
#[test]
fn fields_that_are_null_are_absent() {
    let web = |fields: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n{fields}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{{port: 80, nodePort: null}}]\n  clusterIPs: null\n  sessionAffinityConfig: {{clientIP: null}}\n"
        )
    };
    for fields in [
        "  annotations: {shunt.dev/split: null, a: b}",
        "  annotations: {shunt.dev/split: ~, a: b}",
        "  annotations:\n    shunt.dev/split:\n    a: b",
        "  annotations: {a: b}\n  labels: null",
        "  annotations: {a: b}\n  labels: {x: null}\n  creationTimestamp: null\n  ownerReferences: null",
        "  annotations: {a: b}\n  selfLink: null\n  unheardOf: null",
    ] {
        let text = web(fields);
        let listed = format!("apiVersion: v1\nkind: List\nitems:\n- {}", text.trim_end().replace('\n', "\n  "));
        for text in [text, listed] {
            let manifest = parse(&text);
            assert_eq!(manifest.faults, [], "{text}");
            let [Object::Service(service)] = &manifest.objects.into_values().collect::<Vec<_>>()[..] else {
                panic!("{text}")
            };
            let annotations = service.metadata.annotations.clone().unwrap_or_default();
            assert_eq!(annotations, [("a".to_owned(), "b".to_owned())].into(), "{text}");
            assert!(!service.metadata.labels.iter().flatten().any(|(name, _)| name == "x"), "{text}");
        }
    }
    let text = SLICE.replace("endpoints: [{addresses: [10.0.0.1]}]", "endpoints: [{addresses: [10.0.0.1], nodeName: null, conditions: {ready: null}, deprecatedTopology: {zone: null}}]");
    assert_eq!(parse(&text).faults, []);
    // An entry of a list is not a field.
    assert_eq!(parse(&WEB.replace("- port: 80", "- null\n  - port: 80")).faults.len(), 1);
}

#[test]
fn carriage_returns_and_a_byte_order_mark_are_no_obstacle() {
    let text = format!("\u{feff}%YAML 1.2\n---\n{WEB}---\n{NODE}").replace('\n', "\r\n");
    assert_eq!(names(&parse(&text)), ["Service default/web", "Node node-1"]);
}

#[test]
fn json_is_read_too() {
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\", \"metadata\": {\"name\": \"web\"},\n\
                \t\"spec\": {\"clusterIP\": \"10.96.0.1\", \"ports\": [{\"port\": 80}]}\n}\n";
    assert_eq!(names(&parse(json)), ["Service default/web"]);
    assert_eq!(faults(&json.replace("80", "\"http\"")), [(4, 1, "invalid i32".into())]);
}

#[test]
fn lists_of_both_sorts_are_read_item_by_item() {
    let list = "apiVersion: v1\nkind: List\nitems:\n\
                - {apiVersion: v1, kind: Node, metadata: {name: node-1}}\n\
                - {apiVersion: v1, kind: Pod, metadata: {name: web-1}}\n\
                - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: 80}}\n\
                - {apiVersion: v1, metadata: {name: a}}\n\
                - {apiVersion: v1, kind: Node, metadata: {name: node-2}}\n";
    let manifest = parse(list);
    assert_eq!(names(&manifest), ["Node node-1", "Node node-2"]);
    let lines: Vec<_> = manifest.faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [6, 7]);

    let typed = "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}, spec: {clusterIP: None}}\n";
    assert_eq!(names(&parse(typed)), ["Service default/a"]);
}

#[test]
fn other_kinds_are_skipped_even_if_they_share_a_name() {
    let other = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\n---\n\
                 apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
    let manifest = parse(other);
    assert!(manifest.objects.is_empty() && manifest.faults.is_empty());
}

#[test]
fn an_empty_file_holds_nothing() {
    for text in ["", "\n\n", "# nothing\n", "---\n---\n# nothing\n"] {
        let manifest = parse(text);
        assert!(manifest.objects.is_empty() && manifest.faults.is_empty(), "{text:?}");
    }
}

#[test]
fn a_broken_document_is_named_by_its_line_in_the_file_and_spoils_no_other() {
    let text = format!("{WEB}---\n{}---\n{NODE}", WEB.replace("port: 80", "port: [80"));
    let manifest = parse(&text);
    assert_eq!(names(&manifest), ["Service default/web", "Node node-1"]);
    assert_eq!(manifest.faults.len(), 1);
    let fault = &manifest.faults[0];
    assert_eq!(fault.document, 2);
    assert!((18..=20).contains(&fault.line), "{fault:?}");
}

#[test]
fn a_wrong_type_is_named_by_its_line() {
    let text = format!("{NODE}---\n{}", WEB.replace("port: 80", "port: http"));
    assert_eq!(faults(&text), [(12, 2, "invalid i32".into())]);
}

#[test]
fn what_is_no_object_is_named() {
    assert_eq!(faults("hello\n"), [(1, 1, "expected mapping start".into())]);
    let no_kind = (1, 1, "it has no apiVersion or no kind".into());
    assert_eq!(faults("apiVersion: v1\nmetadata: {name: web}\n"), [no_kind]);
    assert_eq!(faults("apiVersion: v1\nkind: Node\n"), [(1, 1, "the object has no name".into())]);
    let duplicate = faults("apiVersion: v1\nkind: Node\nkind: Node\n");
    assert!(duplicate[0].2.starts_with("duplicate mapping key: kind"), "{duplicate:?}");
}

#[test]
fn an_object_that_stands_twice_is_named_and_the_first_one_counts() {
    let manifest = parse(&format!("{WEB}---\n{}", WEB.replace("10.96.0.1", "10.96.0.2")));
    assert_eq!(manifest.faults[0].cause, "Service default/web stands twice in this file");
    let Some(Object::Service(service)) = manifest.objects.into_values().next() else { panic!("no Service") };
    assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.1"));
}

#[test]
fn defaults_are_those_of_the_api() {
    let manifest = parse(&format!("{SLICE}---\n{}", WEB.replace("clusterIP: 10.96.0.1", "clusterIPs: [fd00::1]")));
    for object in manifest.objects.into_values() {
        match object {
            Object::EndpointSlice(slice) => assert_eq!(slice.ports.unwrap()[0].name.as_deref(), Some("")),
            Object::Service(service) => assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("fd00::1")),
            Object::Node(_) | Object::ServiceCidr(_) => unreachable!("neither was given"),
        }
    }
}

#[test]
fn what_an_api_server_would_have_allocated_is_asked_for() {
    let warnings = |text: &str| -> Vec<_> { parse(text).warnings.into_iter().map(|fault| fault.cause).collect() };
    let bare = WEB.replace("clusterIP: 10.96.0.1", "type: NodePort");
    assert_eq!(
        warnings(&bare),
        ["Service web has no clusterIP and is not served", "Service web has no nodePort for port 80"]
    );
    assert!(warnings(&bare.replace("NodePort", "ExternalName")).is_empty());
    assert!(warnings(&bare.replace("type: NodePort", "clusterIP: None")).is_empty());
    let lost = SLICE.replace("kubernetes.io/service-name", "kubernetes.io/service");
    assert_eq!(warnings(&lost), ["EndpointSlice web-1 names no Service and is not used"]);
}

#[test]
fn a_file_may_hold_tens_of_thousands_of_endpoints() {
    let mut text = SLICE.replace("endpoints: [{addresses: [10.0.0.1]}]\n", "endpoints:\n");
    for index in 0..40_000_u32 {
        text += &format!(
            "- {{addresses: [10.{}.{}.{}], conditions: {{ready: true}}}}\n",
            index >> 16,
            (index >> 8) & 255,
            index & 255
        );
    }
    let manifest = parse(&text);
    assert_eq!(manifest.faults, []);
    let Some(Object::EndpointSlice(slice)) = manifest.objects.into_values().next() else { panic!("no slice") };
    assert_eq!(slice.endpoints.as_ref().unwrap().len(), 40_000);
}

#[test]
fn what_people_write_is_served() {
    let mut model = Model::new("node-1".into());
    let manifest = parse(&format!("{WEB}---\n{}", SLICE.replace("namespace: shop, ", "")));
    for object in manifest.objects.into_values() {
        model.handle(Event::Apply(object));
    }
    let dirty = model.take_dirty();
    let (units, problems) = model.compile(dirty.first().unwrap());
    assert_eq!(problems, []);
    let unit = units.into_values().next().unwrap();
    assert_eq!((unit.frontends.len(), unit.backends.len(), unit.cluster.len()), (2, 1, 1));
}
