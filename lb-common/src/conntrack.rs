// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The question to netfilter's conntrack whether a packet of no flow answers what this node has sent, be it for a pod whose source
//! netfilter has translated (masquerade); or whether it goes on with a connection of a pod that the stack has forwarded untranslated, for
//! the net or another load balancer, before there was a program on the pod's device.
//!
//! ```text
//!  slow path --writes it, tail call--> a program of its own --known as such------> the stack
//!      ^                                        | not known
//!      +-----------------tail call--------------+
//! ```
//!
//! Functions of the kernel that are no helpers (kfuncs) must be named by their numbers in its type information, which differ from kernel to
//! kernel: the program that asks is put together by the agent, where there is conntrack.

use bytemuck::{Pod, Zeroable};

/// One question of one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Question {
    /// The packet's tuple as it arrives: addresses, then ports (`struct bpf_sock_tuple`).
    pub tuple: [u32; 9],
    /// How many bytes of it count: [`Question::LEN_V4`] or [`Question::LEN_V6`].
    pub tuple_len: u32,
    /// `struct bpf_ct_opts` of Linux 5.18, which later ones still take.
    pub options: Options,
    /// 1 when conntrack was asked, and does not know the packet as what it was asked about.
    pub is_answered: u32,
    /// In: 0 to ask about an answer, 1 about any packet of a connection.
    pub is_about_any: u32,
}

/// Parameters of the look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Options {
    /// In: number of a network namespace, or [`Options::CURRENT_NAMESPACE`].
    pub namespace: i32,
    /// Out: why nothing was found.
    pub error: i32,
    /// In: IP protocol number; TCP or UDP.
    pub protocol: u8,
    /// Out: [`Options::REPLY`] where the packet answers.
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl Question {
    /// Bytes of a tuple of IPv4.
    pub const LEN_V4: u32 = 12;
    /// Bytes of a tuple of IPv6.
    pub const LEN_V6: u32 = 36;
}

impl Options {
    /// `BPF_F_CURRENT_NETNS`: that of the packet's device.
    pub const CURRENT_NAMESPACE: i32 = -1;
    /// `IP_CT_DIR_REPLY`.
    pub const REPLY: u8 = 1;
}

const _: () = assert!(size_of::<Options>() == 12 && size_of::<Question>() == 60);
