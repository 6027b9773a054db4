// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single packets through the real programs, in a network namespace with real routes, next to the reference model.
//!
//! ```text
//!              +--> kernel (the object, by BPF_PROG_TEST_RUN) --+
//!  Arrival ----+                                                +--> equal? --> Outcome
//!              +--> reference model ----------------------------+
//! ```

mod arrival;
mod bpf;
mod build;
mod clock;
mod convert;
mod flows;
mod kernel;
mod maps;
mod network;
pub mod node;
mod object;
mod random;
mod rig;
mod shape;
mod wrapper;

pub use bpf::detach_link;
pub use build::{ETHERNET, Error, SEQUENCE, Segment, chunk, icmp_error, port_unreachable, reset};
pub use clock::clock;
pub use kernel::Kernel;
pub use network::{BARE, LOOPBACK, NET, Network, POD, SECOND, UPLINK};
pub use object::{Object, Size, sizes};
pub use random::Random;
pub use rig::{Rig, Room, with_rig, with_rig_for};
pub use shape::{behind_headers, fragments, tagged, with_options};
pub use wrapper::{Ran, Target, Wrapper, template};
