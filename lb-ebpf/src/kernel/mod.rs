// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the kernel gives to programs: maps, working memory, constants, the clock, tail calls, global functions, the verifier's bounds.
//!
//! Knows nobody but `lb_common`.

pub mod bounds;
pub mod clock;
pub mod global_fn;
pub mod globals;
pub mod log;
pub mod maps;
pub mod table;
pub mod tail;
pub mod work;

pub(crate) use global_fn::global_fn;
