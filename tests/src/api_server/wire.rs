// SPDX-License-Identifier: MIT OR Apache-2.0
//! HTTP/1.1 by hand, one request per connection: so an answer can break off or dribble wherever a test wants it to.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    /// Of the header `Authorization: Bearer`.
    pub(super) token: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Reads one; `None` where the peer went away or does not speak HTTP.
    pub(super) fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let head_length = loop {
            if let Some(position) = bytes.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD) {
                break position;
            }
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
            bytes.extend_from_slice(&piece[..count]);
        };
        let head = String::from_utf8(bytes[..head_length].to_vec()).ok()?;
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let headers: BTreeMap<String, &str> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim()))
            .collect();
        let mut body = bytes[head_length + END_OF_HEAD.len()..].to_vec();
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let missing = length - body.len().min(length);
        stream.take(missing as u64).read_to_end(&mut body).ok()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let token = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        Some(Self { method, path: path.to_owned(), query: parse_query(query), token: token.map(str::to_owned), body })
    }

    /// A parameter of the query; empty where it isn't there.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(Option::unwrap_or_default);
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// How an answer leaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    /// The connection breaks after so many bytes of the body.
    pub(super) breaks_after: Option<usize>,
    /// Pieces of so many bytes, with so much time between them.
    pub(super) pieces: Option<(usize, Duration)>,
}

/// Writes one answer.
pub(super) struct Answer {
    stream: TcpStream,
    manner: Manner,
}

impl Answer {
    pub(super) fn new(stream: TcpStream, manner: Manner) -> Self {
        Self { stream, manner }
    }

    /// A whole answer.
    pub(super) fn whole(mut self, status: u16, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        self.head(status, &format!("Content-Length: {}", body.len()))?;
        self.body(body.as_bytes())
    }

    /// The beginning of an answer without a known end, to be followed by [`Answer::line`]s.
    pub(super) fn begin(mut self) -> io::Result<Self> {
        self.head(200, "Transfer-Encoding: chunked")?;
        Ok(self)
    }

    /// One JSON value and a line feed.
    pub(super) fn line(&mut self, value: &Value) -> io::Result<()> {
        let line = format!("{value}\n");
        self.stream.write_all(format!("{:x}\r\n", line.len()).as_bytes())?;
        self.body(line.as_bytes())?;
        self.stream.write_all(b"\r\n")
    }

    /// The orderly end of what [`Answer::begin`] began.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.stream.write_all(b"0\r\n\r\n")
    }

    fn head(&mut self, status: u16, length: &str) -> io::Result<()> {
        let head =
            format!("HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nConnection: close\r\n{length}\r\n\r\n");
        self.stream.write_all(head.as_bytes())
    }

    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        let allowed = self.manner.breaks_after.map_or(bytes.len(), |left| left.min(bytes.len()));
        let (size, pause) = self.manner.pieces.unwrap_or((usize::MAX, Duration::ZERO));
        for piece in bytes[..allowed].chunks(size) {
            self.stream.write_all(piece)?;
            sleep(pause);
        }
        if let Some(left) = &mut self.manner.breaks_after {
            *left -= allowed;
            if allowed < bytes.len() {
                self.stream.shutdown(Shutdown::Both)?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = parse_query("labelSelector=%21a%2Fb&limit=500&x=a+b&broken=%4");
        assert_eq!(query["labelSelector"], "!a/b");
        assert_eq!(query["limit"], "500");
        assert_eq!(query["x"], "a b");
    }
}
