// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random bytes from the kernel, for keys and cookies.

use std::{
    fs::File,
    io::{self, Read as _},
};

use bytemuck::Pod;

/// A value of which every bit is random.
///
/// # Errors
/// Where `/dev/urandom` can't be read.
pub fn random<T: Pod>() -> io::Result<T> {
    let mut value = T::zeroed();
    File::open("/dev/urandom")?.read_exact(bytemuck::bytes_of_mut(&mut value))?;
    Ok(value)
}
