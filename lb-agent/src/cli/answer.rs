// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers on standard output. `println!` would panic when the reader has gone (`lb-agent get flows | head`).

use std::io::{self, BufWriter, Write};

/// Prints an answer and a newline. A reader who has seen enough is no error.
///
/// # Errors
/// When standard output can't be written for another reason.
pub fn print(answer: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    forgive(writeln!(out, "{answer}").and_then(|()| out.flush()))
}

/// Prints an answer that is written piece by piece.
///
/// # Errors
/// What the writer says, and as [`print`].
pub fn stream(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = write(&mut out).or_else(|error| Ok::<_, anyhow::Error>(forgive(Err(error.downcast()?))?));
    written.and_then(|()| Ok(forgive(out.flush())?))
}

fn forgive(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
