// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values of kube-proxy's fields, as our flags want them. Errors say what a value must be.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use crate::node::addresses::NodePortAddresses;

/// Reads a value; the error completes "it must be ...". `Ok(None)` is a flag that has no value.
pub(super) type Read = fn(&Value) -> Result<Option<String>, &'static str>;

/// kube-proxy's own, which it adds to an address without a port.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Whether a value says as much as its absence: Go's zero values. (`false` is said to be one too: no switch that is off by
/// itself means more when it is written down.)
pub(super) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || nanoseconds(text) == Some(0),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

pub(super) fn text(value: &Value) -> Result<Option<String>, &'static str> {
    value.as_str().map(|text| Some(text.to_owned())).ok_or("a text")
}

/// A switch that is on; one that is off never gets here.
pub(super) fn switch(value: &Value) -> Result<Option<String>, &'static str> {
    if value.is_boolean() { Ok(None) } else { Err("true or false") }
}

/// A switch that means as much when it is off.
pub(super) fn either(value: &Value) -> Result<Option<String>, &'static str> {
    value.as_bool().map(|is_on| Some(is_on.to_string())).ok_or("true or false")
}

pub(super) fn healthz_address(value: &Value) -> Result<Option<String>, &'static str> {
    address(value, HEALTHZ_PORT)
}

pub(super) fn metrics_address(value: &Value) -> Result<Option<String>, &'static str> {
    address(value, METRICS_PORT)
}

fn address(value: &Value, default_port: u16) -> Result<Option<String>, &'static str> {
    let text = value.as_str().unwrap_or_default();
    let with_port = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default_port));
    let address = with_port.or_else(|_| text.parse::<SocketAddr>());
    address.map(|address| Some(address.to_string())).map_err(|_| "an address such as 0.0.0.0:10256 or [::]:10256")
}

pub(super) fn node_port_addresses(value: &Value) -> Result<Option<String>, &'static str> {
    const WANTED: &str = "a list of CIDRs such as 192.0.2.0/24 and the words `primary`, `localhost` and `all`";
    let items = value.as_array().ok_or(WANTED)?;
    let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
    let text = texts.ok_or(WANTED)?.join(",");
    text.parse::<NodePortAddresses>().map_err(|_| WANTED)?;
    Ok(Some(text))
}

/// One CIDR, or one of each family.
pub(super) fn ranges(value: &Value) -> Result<Option<String>, &'static str> {
    const WANTED: &str = "a CIDR such as 10.244.0.0/16, or one of each family with a comma between them";
    let text = value.as_str().ok_or(WANTED)?;
    let ranges: Result<Vec<IpNet>, _> = text.split(',').map(|range| range.trim().parse()).collect();
    let ranges = ranges.map_err(|_| WANTED)?;
    Ok(Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")))
}

/// Rounded up to seconds.
pub(super) fn duration(value: &Value) -> Result<Option<String>, &'static str> {
    let seconds = value.as_str().and_then(nanoseconds).map(|nanoseconds| nanoseconds.div_ceil(SECOND));
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    seconds.map(|seconds| Some(format!("{seconds}s"))).ok_or("a time span such as 90s, 15m or 1h30m0s")
}

const SECOND: u64 = 1_000_000_000;

/// What Go's `time.Duration` writes and reads: numbers with units, the largest first, `1h0m0.5s`. A lone `0` needs none.
fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let number_end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|character: char| character.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        sum = sum.checked_add((number * factor as f64) as u64)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn time_spans_are_gos() {
        for (text, seconds) in [("24h0m0s", 86_400), ("1h30m", 5400), ("1.5s", 2), ("90s", 90), ("250ms", 1)] {
            assert_eq!(duration(&json!(text)), Ok(Some(format!("{seconds}s"))), "{text}");
        }
        for text in ["90", "1d", "h", "-3s", "1s ", "2000000h"] {
            assert!(duration(&json!(text)).is_err(), "{text}");
        }
        assert!(duration(&json!(90)).is_err());
    }

    #[test]
    fn zero_values_say_nothing() {
        for value in
            [json!(null), json!(""), json!("0s"), json!("0h0m0s"), json!(0), json!([]), json!({}), json!(false)]
        {
            assert!(is_unset(&value), "{value}");
        }
        for value in [json!("1s"), json!("primary"), json!(1), json!(["a"]), json!(true), json!("h")] {
            assert!(!is_unset(&value), "{value}");
        }
    }

    #[test]
    fn addresses_may_lack_their_port() {
        assert_eq!(healthz_address(&json!("0.0.0.0")), Ok(Some("0.0.0.0:10256".into())));
        assert_eq!(metrics_address(&json!("::")), Ok(Some("[::]:10249".into())));
        assert_eq!(metrics_address(&json!("[::1]:9")), Ok(Some("[::1]:9".into())));
        assert!(metrics_address(&json!("localhost:9")).is_err());
    }
}
