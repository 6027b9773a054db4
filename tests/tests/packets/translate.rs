// SPDX-License-Identifier: MIT OR Apache-2.0
//! Translation, there and back.

use anyhow::Result;
use lb_common::flow::tcp_flags::SYN;
use shunt_tests::{
    packets::{node::*, *},
    reference::*,
};
use std::net::SocketAddr;
use std::time::Instant;

#[test]
fn first() -> Result<()> {
    let t = Instant::now();
    with_rig(setup, |rig| {
        println!("{:?}", t.elapsed());
        let version = Version::V4;
        let frame = Segment::tcp(SocketAddr::new(pick(OUTSIDE, version), 40000), HERE.at_node(version), SYN).build();
        let out = rig.send(&Arrival { door: Door::Xdp, ifindex: UPLINK, frame, is_trace: false })?;
        println!("{out:?}");
        let t = Instant::now();
        for n in 0..1000 {
            let frame =
                Segment::tcp(SocketAddr::new(pick(OUTSIDE, version), 40000 + n), THERE.at_node(version), SYN).build();
            let out = rig.send(&Arrival { door: Door::Xdp, ifindex: UPLINK, frame, is_trace: false })?;
            if n == 0 {
                println!("{out:?}");
            }
        }
        println!("{:?}", t.elapsed());
        rig.compare_flows()?;
        println!("{:?}", t.elapsed());
        Ok(())
    })
}
