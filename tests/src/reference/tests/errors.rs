// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors. An error about a translated packet must become, to the byte, the error about the packet as its sender knows
//! it.

use std::net::IpAddr;

use lb_common::flow::protocol;

use super::{PROTOCOLS, assert_sound, assert_untouched, client, first, model, segment, send};
use crate::{
    packets::{
        ETHERNET, Error, Network, UPLINK, behind_headers, fragments,
        node::{GATEWAY, HERE, NODE, Service, THERE, pick},
        with_options,
    },
    reference::{Door, Model, Verdict, Version},
};

const KINDS_V4: [(u8, u8); 3] = [(3, 4), (11, 0), (12, 0)];
const KINDS_V6: [(u8, u8); 4] = [(1, 4), (2, 0), (3, 0), (4, 1)];

fn kinds(version: Version) -> &'static [(u8, u8)] {
    if version == Version::V4 { &KINDS_V4 } else { &KINDS_V6 }
}

fn error(source: IpAddr, destination: IpAddr, kind: (u8, u8), quote: &[u8]) -> Vec<u8> {
    Error { source, destination, kind, word: [0, 0, 5, 0x14], ttl: 64, ethernet: ETHERNET }.build(quote)
}

/// A flow begun by a client outside: its first packet as it came, and as it went on.
fn begin(model: &mut Model, protocol: u8, service: Service, version: Version) -> (Vec<u8>, Vec<u8>) {
    let frame = first(protocol, service, version).build();
    let outcome = send(model, (Door::Ingress, UPLINK), frame.clone());
    assert!(outcome.moved.reasons.is_empty(), "{outcome}");
    (frame[14..].to_vec(), outcome.frame[14..].to_vec())
}

/// For each version, protocol, kind, and number of bytes quoted behind the IP header.
fn for_all(test: impl Fn(Version, u8, (u8, u8), usize)) {
    for version in Version::BOTH {
        for protocol in PROTOCOLS {
            for &kind in kinds(version) {
                // Whole, eight bytes (RFC 792), and no more than the ports.
                for len in [usize::MAX, 8, 4] {
                    test(version, protocol, kind, len);
                }
            }
        }
    }
}

fn cut(version: Version, packet: &[u8], len: usize) -> &[u8] {
    let headers = if version == Version::V4 { 20 } else { 40 };
    &packet[..packet.len().min(headers + len.min(1 << 16))]
}

#[test]
fn an_error_of_the_backend_here_comes_from_the_service_to_the_client() {
    for_all(|version, protocol, kind, len| {
        let mut model = model();
        let (sent, received) = begin(&mut model, protocol, HERE, version);
        let (backend, client) = (HERE.backend(version).ip(), client(version).ip());
        let frame = error(backend, client, kind, cut(version, &received, len));
        let outcome = send(&mut model, (Door::Egress, UPLINK), frame);
        assert_eq!(outcome.verdict, Verdict::Pass);
        // SCTP's checksum in the quotation is let alone.
        if protocol != protocol::SCTP || len <= 8 {
            let expected = error(HERE.at_node(version).ip(), client, kind, cut(version, &sent, len));
            assert_eq!(outcome.frame, expected, "{version:?} {protocol} {kind:?} {len}");
        }
        assert_sound(&outcome.frame);
        let moved = format!("backend{}.reply=1x{}B", HERE.index(version), outcome.frame.len());
        assert_eq!(outcome.moved.to_string(), moved);
    });
}

#[test]
fn an_error_of_a_router_behind_the_service_keeps_its_source() {
    for_all(|version, protocol, kind, len| {
        let mut model = model();
        let (sent, received) = begin(&mut model, protocol, HERE, version);
        let (router, client) = (pick(["10.1.0.77", "fd00:1::77"], version), client(version).ip());
        let frame = error(router, client, kind, cut(version, &received, len));
        let outcome = send(&mut model, (Door::Egress, UPLINK), frame);
        if protocol != protocol::SCTP || len <= 8 {
            assert_eq!(outcome.frame, error(router, client, kind, cut(version, &sent, len)));
        }
        assert_sound(&outcome.frame);
    });
}

#[test]
fn an_error_about_a_source_translated_packet_is_sent_on_to_the_client() {
    for_all(|version, protocol, kind, len| {
        let mut model = model();
        let (sent, forwarded) = begin(&mut model, protocol, THERE, version);
        let (router, node, client) = (pick(GATEWAY, version), pick(NODE, version), client(version).ip());
        // The copy that it quotes has lost one from its TTL.
        let mut known = sent;
        let at = if version == Version::V4 { 8 } else { 7 };
        known[at] -= 1;
        if version == Version::V4 {
            let header = etherparse::Ipv4Header::from_slice(&known).unwrap().0;
            let check = header.calc_header_checksum();
            known[10..12].copy_from_slice(&check.to_be_bytes());
        }
        let outcome =
            send(&mut model, (Door::Ingress, UPLINK), error(router, node, kind, cut(version, &forwarded, len)));
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let ethernet = Network::plan().ethernet(UPLINK, pick(GATEWAY, version));
        let expected = Error { source: router, destination: client, kind, word: [0, 0, 5, 0x14], ttl: 63, ethernet };
        if protocol != protocol::SCTP || len <= 8 {
            assert_eq!(outcome.frame, expected.build(cut(version, &known, len)));
        }
        assert_sound(&outcome.frame);
    });
}

#[test]
fn an_error_about_a_reply_goes_to_the_backend() {
    for_all(|version, protocol, kind, len| {
        for (service, is_from_client) in [(HERE, true), (HERE, false), (THERE, true), (THERE, false)] {
            let mut model = model();
            let (_, translated) = begin(&mut model, protocol, service, version);
            let at = if version == Version::V4 { 20 } else { 40 };
            let port = u16::from_be_bytes([translated[at], translated[at + 1]]);
            let (client, frontend, backend) = (client(version), service.at_node(version), service.backend(version));
            // Whom the backend knows: the client, or this node.
            let known = if service.port == HERE.port { client } else { (pick(NODE, version), port).into() };
            let reply = segment(protocol, frontend, client).build();
            let quoted = segment(protocol, backend, known).build();
            let sender = if is_from_client { client.ip() } else { pick(GATEWAY, version) };
            let frame = error(sender, frontend.ip(), kind, cut(version, &reply[14..], len));
            let outcome = send(&mut model, (Door::Ingress, UPLINK), frame);
            let is_translated = service.port == THERE.port;
            let source = if is_from_client || is_translated { known.ip() } else { sender };
            let ethernet =
                if is_translated { Network::plan().ethernet(UPLINK, pick(GATEWAY, version)) } else { ETHERNET };
            let expected = Error {
                source,
                destination: backend.ip(),
                kind,
                word: [0, 0, 5, 0x14],
                ttl: if is_translated { 63 } else { 64 },
                ethernet,
            };
            if protocol != protocol::SCTP || len <= 8 {
                assert_eq!(outcome.frame, expected.build(cut(version, &quoted[14..], len)));
            }
            assert_sound(&outcome.frame);
        }
    });
}

#[test]
fn an_error_changes_nothing_of_its_flow_and_asks_for_no_backend() {
    for version in Version::BOTH {
        let mut model = model();
        let (_, received) = begin(&mut model, PROTOCOLS[0], HERE, version);
        let flows = model.flows.clone();
        let index = HERE.index(version) as usize;
        model.setup.backends[index] = crate::reference::Backend::free(7);
        let frame = error(HERE.backend(version).ip(), client(version).ip(), kinds(version)[0], &received);
        let outcome = send(&mut model, (Door::Egress, UPLINK), frame);
        assert!(!outcome.moved.backends.is_empty(), "{outcome}");
        assert_eq!(model.flows, flows);
    }
}

#[test]
fn what_is_no_error_about_a_flow_is_let_alone() {
    for version in Version::BOTH {
        let mut model = model();
        let (_, received) = begin(&mut model, PROTOCOLS[0], HERE, version);
        let (backend, client) = (HERE.backend(version).ip(), client(version).ip());
        let mut strangers = received.clone();
        let last = if version == Version::V4 { 19 } else { 39 };
        strangers[last] ^= 1;
        let mut ported = received.clone();
        ported[last + 2] ^= 1;
        let cases = [
            error(backend, client, if version == Version::V4 { (5, 0) } else { (129, 0) }, &received),
            error(backend, client, if version == Version::V4 { (8, 0) } else { (128, 0) }, &received),
            error(backend, client, kinds(version)[0], &strangers),
            error(backend, client, kinds(version)[0], &ported),
            error(backend, client, kinds(version)[0], cut(version, &received, 3)),
            error(backend, client, kinds(version)[0], &[]),
        ];
        for frame in cases {
            assert_untouched(&send(&mut model, (Door::Egress, UPLINK), frame.clone()), &frame, "");
        }
        // The right error at the wrong hook.
        let frame = error(backend, client, kinds(version)[0], &received);
        assert_untouched(&send(&mut model, (Door::Ingress, UPLINK), frame.clone()), &frame, "");
        // Cut into fragments, nothing can be done about it.
        for fragment in fragments(&frame, 7, 32) {
            assert_untouched(&send(&mut model, (Door::Egress, UPLINK), fragment.clone()), &fragment, "");
        }
    }
}

#[test]
fn options_and_extension_headers_around_and_within_are_walked_over() {
    for version in Version::BOTH {
        let lengthen = |frame: &[u8]| match version {
            Version::V4 => with_options(frame, &[1, 1, 1, 1, 1, 1, 1, 0]),
            Version::V6 => behind_headers(frame, 60, &[frame[20], 0, 1, 4, 0, 0, 0, 0]),
        };
        let mut model = model();
        let (sent, received) = begin(&mut model, PROTOCOLS[1], HERE, version);
        let (backend, client) = (HERE.backend(version).ip(), client(version).ip());
        let kind = kinds(version)[0];
        let expected = lengthen(&error(pick(NODE, version), client, kind, &lengthen_quote(version, &sent)));
        let frame = lengthen(&error(backend, client, kind, &lengthen_quote(version, &received)));
        let outcome = send(&mut model, (Door::Egress, UPLINK), frame);
        assert_eq!(outcome.frame, expected);
        assert_sound(&outcome.frame);
    }
}

/// A quoted packet with options or an extension header.
fn lengthen_quote(version: Version, packet: &[u8]) -> Vec<u8> {
    let ethertype = if version == Version::V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let frame = [&[0; 12][..], &ethertype, packet].concat();
    let longer = match version {
        Version::V4 => with_options(&frame, &[1, 1, 1, 0]),
        Version::V6 => behind_headers(&frame, 0, &[packet[6], 0, 1, 4, 0, 0, 0, 0]),
    };
    longer[14..].to_vec()
}

#[test]
fn damage_stays_damage() {
    for version in Version::BOTH {
        let mut model = model();
        let (sent, received) = begin(&mut model, PROTOCOLS[0], HERE, version);
        let (backend, client) = (HERE.backend(version).ip(), client(version).ip());
        let kind = kinds(version)[0];
        let mut frame = error(backend, client, kind, &received);
        let mut expected = error(pick(NODE, version), client, kind, &sent);
        for frame in [&mut frame, &mut expected] {
            let last = frame.len() - 1;
            frame[last] ^= 0x55;
        }
        assert_eq!(send(&mut model, (Door::Egress, UPLINK), frame).frame, expected);
    }
}
