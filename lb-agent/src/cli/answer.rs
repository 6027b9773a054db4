// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers on standard output. `println!` would panic when the reader has gone (`lb-agent get flows | head`).

use std::io::{self, Write as _};

/// Prints an answer and a newline. A reader who has seen enough is no error.
///
/// # Errors
/// When standard output can't be written for another reason.
pub fn print(answer: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{answer}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
