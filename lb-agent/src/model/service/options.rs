// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a Service treats its clients beyond choosing an endpoint: session affinity, and our own annotations.

use k8s_openapi::api::core::v1 as core;

use crate::model::{
    fault::{Bad, Faults, Field},
    service::Service,
    split::Split,
};

/// Prefix of our own annotations.
const ANNOTATION_PREFIX: &str = "shunt.dev/";
/// What becomes of established TCP connections whose endpoint goes.
pub(super) const ON_BACKEND_REMOVAL: &str = "shunt.dev/on-backend-removal";
/// What becomes of packets from outside for which the external policy Local finds no endpoint. Sources put the field
/// `spec.externalFailoverPolicy` here, too ([`crate::source`]).
pub(super) const EXTERNAL_FAILOVER: &str = "shunt.dev/external-failover";
/// Which Services' endpoints serve, and in which proportion.
pub(super) const SPLIT: &str = "shunt.dev/split";

/// Seconds for which a client stays with its endpoint where the object doesn't say (rule 55).
const DEFAULT_AFFINITY_SECS: u32 = 10_800;
/// Longest such time: a day.
const MAX_AFFINITY_SECS: u32 = 86_400;

/// The time in seconds for which a client that opens no new connection stays with its endpoint; `None` where each
/// connection is chosen anew (rules 54, 55).
pub(super) fn parse_affinity(spec: &core::ServiceSpec, good: Option<&Service>, faults: &mut Faults) -> Option<u32> {
    let last_good = good.map(|good| good.affinity_secs);
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let bad = Bad {
                cause: format!("spec.sessionAffinity \"{other}\" is unknown"),
                stopgap: None,
                stopgap_text: " and taken for None".into(),
                remedy: "use ClientIP or None".into(),
            };
            return faults.hold(Field::Affinity, bad, last_good);
        }
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(given) = client_ip.and_then(|config| config.timeout_seconds) else { return Some(DEFAULT_AFFINITY_SECS) };
    let seconds = u32::try_from(given).ok().filter(|seconds| (1..=MAX_AFFINITY_SECS).contains(seconds));
    if seconds.is_some() {
        return seconds;
    }
    let bad = Bad {
        cause: format!("its affinity timeout of {given} s is out of range"),
        stopgap: Some(DEFAULT_AFFINITY_SECS),
        stopgap_text: format!("; {DEFAULT_AFFINITY_SECS} s are taken"),
        remedy: format!("set sessionAffinityConfig.clientIP.timeoutSeconds to 1 to {MAX_AFFINITY_SECS}"),
    };
    faults.hold(Field::Affinity, bad, last_good)
}

/// What our annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) resets_on_removal: bool,
    pub(super) passes_on_failover: bool,
    pub(super) split: Option<Split>,
}

impl Annotations {
    /// Reads them; one of ours that nobody knows is named, as it may be a misspelt one.
    pub(super) fn parse<'a>(
        object: &core::Service,
        good: impl Fn(Field) -> Option<&'a Service>,
        faults: &mut Faults,
    ) -> Self {
        let mut own = Self::default();
        for (name, value) in object.metadata.annotations.iter().flatten() {
            match name.as_str() {
                ON_BACKEND_REMOVAL => {
                    own.resets_on_removal = parse_removal(value, good(Field::OnBackendRemoval), faults);
                }
                EXTERNAL_FAILOVER => {
                    own.passes_on_failover = parse_failover(value, good(Field::ExternalFailover), faults);
                }
                SPLIT => own.split = parse_split(value, good(Field::Split), faults),
                other if other.starts_with(ANNOTATION_PREFIX) => faults.tell(
                    format!("annotation {other} is unknown"),
                    format!("remove it; {ON_BACKEND_REMOVAL}, {EXTERNAL_FAILOVER} and {SPLIT} are known"),
                ),
                _ => {}
            }
        }
        own
    }
}

fn parse_removal(value: &str, good: Option<&Service>, faults: &mut Faults) -> bool {
    match value {
        "reset" => true,
        "keep" => false,
        other => {
            let bad = Bad {
                cause: format!("annotation {ON_BACKEND_REMOVAL}: \"{other}\" is unknown"),
                stopgap: false,
                stopgap_text: " and taken for keep".into(),
                remedy: "use keep or reset".into(),
            };
            faults.hold(Field::OnBackendRemoval, bad, good.map(|good| good.resets_on_removal))
        }
    }
}

fn parse_split(value: &str, good: Option<&Service>, faults: &mut Faults) -> Option<Split> {
    match Split::parse(value) {
        Ok(split) => Some(split),
        Err(cause) => {
            let bad = Bad {
                cause: format!("annotation {SPLIT}: {cause}"),
                stopgap: None,
                stopgap_text: ", so the Service's own endpoints serve".into(),
                remedy: "give Services of this namespace with weights, such as web-v1=90,web-v2=10".into(),
            };
            faults.hold(Field::Split, bad, good.map(|good| good.split.clone()))
        }
    }
}

/// The field's values begin with a capital.
fn parse_failover(value: &str, good: Option<&Service>, faults: &mut Faults) -> bool {
    match value {
        "passthrough" | "Passthrough" => true,
        "none" | "None" | "" => false,
        other => {
            let bad = Bad {
                cause: format!("its external failover policy \"{other}\" is unknown"),
                stopgap: false,
                stopgap_text: " and taken for None".into(),
                remedy: format!(
                    "set spec.externalFailoverPolicy to None or Passthrough, or {EXTERNAL_FAILOVER} to none or passthrough"
                ),
            };
            faults.hold(Field::ExternalFailover, bad, good.map(|good| good.passes_on_failover))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        builders::{ServiceBuilder, service},
        service::Service,
    };

    fn parsed(builder: ServiceBuilder) -> (Service, Vec<String>) {
        let parsed = Service::parse(&builder.0, None).unwrap();
        let causes = parsed.problems.iter().map(|problem| problem.cause.clone()).collect();
        (parsed, causes)
    }

    #[test]
    fn rule_55_the_affinity_timeout_is_three_hours_unless_said_otherwise() {
        let timeout = |builder: ServiceBuilder| parsed(builder).0.affinity_secs;
        assert_eq!(timeout(service("web")), None);
        assert_eq!(timeout(service("web").edit(|spec| spec.session_affinity = Some("None".into()))), None);
        assert_eq!(timeout(service("web").affinity(None)), Some(10_800));
        assert_eq!(timeout(service("web").affinity(Some(86_400))), Some(86_400));
        assert!(parsed(service("web").affinity(Some(1))).1.is_empty());
    }

    #[test]
    fn rule_55_an_impossible_affinity_is_named() {
        for seconds in [0, -1, 86_401] {
            let (service, causes) = parsed(service("web").affinity(Some(seconds)));
            assert_eq!(service.affinity_secs, Some(10_800));
            let cause = format!("its affinity timeout of {seconds} s is out of range; 10800 s are taken");
            assert_eq!(causes, [cause]);
        }
        let (service, causes) = parsed(service("web").edit(|spec| spec.session_affinity = Some("Cookie".into())));
        assert_eq!(service.affinity_secs, None);
        assert_eq!(causes, ["spec.sessionAffinity \"Cookie\" is unknown and taken for None"]);
    }

    #[test]
    fn rule_58_connections_are_kept_unless_reset_is_asked_for() {
        let removal = |value| parsed(service("web").annotation(ON_BACKEND_REMOVAL, value));
        assert!(!parsed(service("web")).0.resets_on_removal);
        assert!(!removal("keep").0.resets_on_removal);
        assert!(removal("reset").0.resets_on_removal);
        let (service, causes) = removal("Reset");
        assert!(!service.resets_on_removal && service.stopgaps.contains(&Field::OnBackendRemoval));
        assert_eq!(causes, ["annotation shunt.dev/on-backend-removal: \"Reset\" is unknown and taken for keep"]);
    }

    #[test]
    fn rule_86_passthrough_is_asked_for_by_annotation_or_field() {
        let failover = |value| parsed(service("web").annotation(EXTERNAL_FAILOVER, value));
        assert!(!parsed(service("web")).0.passes_on_failover);
        for (value, expected) in [("passthrough", true), ("Passthrough", true), ("none", false), ("None", false)] {
            let (service, causes) = failover(value);
            assert_eq!((service.passes_on_failover, causes.len()), (expected, 0), "{value}");
        }
        let (service, causes) = failover("Forward");
        assert!(!service.passes_on_failover);
        assert_eq!(causes, ["its external failover policy \"Forward\" is unknown and taken for None"]);
    }

    #[test]
    fn an_annotation_of_ours_that_nobody_knows_is_named() {
        let (service, causes) = parsed(service("web").annotation("shunt.dev/splitt", "a=1").annotation("x/y", "z"));
        assert!(service.stopgaps.is_empty());
        assert_eq!(causes, ["annotation shunt.dev/splitt is unknown"]);
    }
}
