#!/usr/bin/env bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Software: the crate etherparse 0.21.0.
# One would expect: a packet that says its length is 0 is treated alike in all families: refused, or taken to the end of what was
#   captured. Such packets are real: captures on a sender with segmentation offload (BIG TCP) have a length of 0 in IPv4 and IPv6.
# Instead: strict slicing refuses it in IPv4 ("only 0 byte(s) are available"), and takes it in IPv6, and takes a UDP length of 0 too.
#   Only the lax slicer takes all.
# Why it matters: a test that looks at captured traffic passes with IPv6 and fails with IPv4 when large segments come, or drops these
#   packets unseen, depending on how it treats the error.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

mkdir -p "$WORK/lengths/src"
cat >"$WORK/lengths/Cargo.toml" <<'END'
[package]
name = "lengths"
version = "0.1.0"
edition = "2024"

[dependencies]
etherparse = "=0.21.0"
END
cat >"$WORK/lengths/src/main.rs" <<'END'
use etherparse::{LaxSlicedPacket, PacketBuilder, SlicedPacket};

fn show(name: &str, mut packet: Vec<u8>, length_at: usize) {
    packet[length_at..length_at + 2].fill(0);
    let strict = SlicedPacket::from_ip(&packet).is_ok_and(|sliced| sliced.transport.is_some());
    let lax = LaxSlicedPacket::from_ip(&packet).is_ok_and(|sliced| sliced.transport.is_some());
    println!("{name} of 0: strict {strict}, lax {lax}");
}

fn main() {
    let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let v6 = || PacketBuilder::ipv6([1; 16], [2; 16], 64);
    let mut packet = Vec::new();
    v4().tcp(1, 2, 3, 4).write(&mut packet, b"data").unwrap();
    show("IPv4 total length", packet, 2);
    let mut packet = Vec::new();
    v6().tcp(1, 2, 3, 4).write(&mut packet, b"data").unwrap();
    show("IPv6 payload length", packet, 4);
    let mut packet = Vec::new();
    v4().udp(1, 2).write(&mut packet, b"data").unwrap();
    show("UDP length", packet, 24);
}
END
seen=$(cargo_run "$WORK/lengths")

expect 'IPv4 total length of 0: strict false, lax true
IPv6 payload length of 0: strict true, lax true
UDP length of 0: strict true, lax true' "$seen"
