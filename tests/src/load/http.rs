// SPDX-License-Identifier: MIT OR Apache-2.0
//! The least HTTP/1.1 that a measurement needs: one request, on a new connection.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// Where the request came from, as its sender sees it.
    pub local: SocketAddr,
}

impl Response {
    /// The words of the body. The world's web servers answer with their name, the client's address and its port.
    fn word(&self, position: usize) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()?.split_whitespace().nth(position)
    }

    /// The name of the web server that answered.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        self.word(0)
    }

    /// The client, as the web server sees it.
    #[must_use]
    pub fn client(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.word(1)?.parse().ok()?, self.word(2)?.parse().ok()?))
    }
}

/// Sends `GET path` and reads the answer until the server closes.
///
/// # Errors
/// When it can't be had within `limit` per step, or is not HTTP.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes, local).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP response"))
}

fn parse(bytes: &[u8], local: SocketAddr) -> Option<Response> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let head_length = bytes.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD)?;
    let head = std::str::from_utf8(&bytes[..head_length]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Response { status, body: bytes[head_length + END_OF_HEAD.len()..].to_vec(), local })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_response_says_who_answered_whom() {
        let local = "10.244.1.90:4000".parse().expect("an address");
        let response = parse(b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nweb-1 10.244.1.90 4000\n", local).expect("HTTP");
        assert_eq!(response.status, 200);
        assert_eq!(response.server(), Some("web-1"));
        assert_eq!(response.client(), Some(local));
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n", local), None);
    }
}
