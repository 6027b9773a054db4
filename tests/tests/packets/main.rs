// SPDX-License-Identifier: MIT OR Apache-2.0
//! T1: single packets through the real programs. Every one goes through the reference model as well, which must agree.

mod admit;
mod adversarial;
mod affinity;
mod captured;
mod direct;
mod fragments;
mod headers;
mod icmp;
mod life;
mod malformed;
mod masquerade;
mod net;
mod net_errors;
mod own;
mod pending;
mod race;
mod random;
mod refuse;
mod reset;
mod sctp;
mod sizes;
mod step;
mod trace;
mod translate;
mod twice;
mod vanish;
mod vlan;
mod workers;
