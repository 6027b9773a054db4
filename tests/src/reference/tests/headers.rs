// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options, extension headers and tags: what is behind them must become what it would have become without them.

use lb_common::flow::protocol;

use super::{PROTOCOLS, assert_sound, assert_untouched, client, first, model, send};
use crate::{
    packets::{
        UPLINK, behind_headers,
        node::{CLUSTER_IP, HERE, THERE, pick},
        tagged, with_options,
    },
    reference::{Door, Verdict, Version},
};

/// A chain of destination options of these lengths before UDP.
fn chain(lens: &[usize], last: u8) -> Vec<u8> {
    let headers = lens.iter().enumerate().map(|(number, &len)| {
        let next = if number + 1 == lens.len() { last } else { 60 };
        let mut header = vec![0; len];
        (header[0], header[1]) = (next, u8::try_from(len / 8 - 1).expect("a short header"));
        header
    });
    headers.flatten().collect()
}

#[test]
fn options_are_skipped() {
    for protocol in PROTOCOLS {
        for words in 1..=10 {
            let options = vec![1; 4 * words];
            let frame = first(protocol, HERE, Version::V4).build();
            let expected = first(protocol, HERE, Version::V4).between(client(Version::V4), HERE.backend(Version::V4));
            let outcome = send(&mut model(), (Door::Ingress, UPLINK), with_options(&frame, &options));
            assert_eq!(outcome.frame, with_options(&expected.build(), &options));
            assert_sound(&outcome.frame);
        }
    }
}

#[test]
fn extension_headers_are_skipped() {
    for protocol in PROTOCOLS {
        for lens in [&[8][..], &[256], &[8, 16, 24], &[40; 6]] {
            let headers = chain(lens, protocol);
            let frame = first(protocol, HERE, Version::V6).build();
            let expected = first(protocol, HERE, Version::V6).between(client(Version::V6), HERE.backend(Version::V6));
            let outcome = send(&mut model(), (Door::Ingress, UPLINK), behind_headers(&frame, 60, &headers));
            assert_eq!(outcome.frame, behind_headers(&expected.build(), 60, &headers));
            assert_sound(&outcome.frame);
        }
    }
}

#[test]
fn beyond_the_bound_there_is_a_reason() {
    for lens in [&[264][..], &[8; 7], &[48, 48, 48, 48, 48, 24]] {
        let headers = chain(lens, protocol::UDP);
        let mut model = model();
        let frame = behind_headers(&first(protocol::UDP, HERE, Version::V6).build(), 60, &headers);
        assert_untouched(&send(&mut model, (Door::Ingress, UPLINK), frame.clone()), &frame, "too-many-headers=1");
        model.setup.guarded.insert(pick(CLUSTER_IP, Version::V6));
        let to_cluster =
            first(protocol::UDP, HERE, Version::V6).between(client(Version::V6), HERE.at_cluster_ip(Version::V6));
        let outcome = send(&mut model, (Door::Ingress, UPLINK), behind_headers(&to_cluster.build(), 60, &headers));
        assert_eq!((outcome.verdict, outcome.moved.to_string().as_str()), (Verdict::Drop, "too-many-headers=1"));
    }
}

#[test]
fn headers_that_are_cut_off_are_malformed() {
    let frame = first(protocol::UDP, HERE, Version::V6).build();
    let whole = behind_headers(&frame, 60, &chain(&[8, 16], protocol::UDP));
    for len in 14 + 40..whole.len() {
        let outcome = send(&mut model(), (Door::Ingress, UPLINK), whole[..len].to_vec());
        assert_untouched(&outcome, &whole[..len], if len < 14 + 48 { "" } else { "malformed=1" });
    }
}

#[test]
fn tags_are_looked_behind_by_xdp() {
    for version in Version::BOTH {
        for tags in [&[(0x8100, 7)][..], &[(0x88a8, 7), (0x8100, 9)]] {
            let frame = first(protocol::UDP, HERE, version).build();
            let expected = first(protocol::UDP, HERE, version).between(client(version), HERE.backend(version)).build();
            let outcome = send(&mut model(), (Door::Xdp, UPLINK), tagged(&frame, tags));
            assert_eq!((outcome.verdict, outcome.frame), (Verdict::Pass, tagged(&expected, tags)));
            let frame = tagged(&frame, tags);
            assert_untouched(&send(&mut model(), (Door::Ingress, UPLINK), frame.clone()), &frame, "");
        }
        let thrice = tagged(&first(protocol::UDP, HERE, version).build(), &[(0x8100, 7); 3]);
        assert_untouched(&send(&mut model(), (Door::Xdp, UPLINK), thrice.clone()), &thrice, "");
        // What is to be sent on is left to TC, which knows the device of the tag.
        let tagged = tagged(&first(protocol::UDP, THERE, version).build(), &[(0x8100, 7)]);
        let outcome = send(&mut model(), (Door::Xdp, UPLINK), tagged.clone());
        assert_eq!((outcome.verdict, outcome.frame), (Verdict::Pass, tagged));
        assert_eq!(outcome.moved.reasons.keys().copied().collect::<Vec<_>>(), ["left-to-tc"]);
    }
}
