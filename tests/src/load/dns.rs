// SPDX-License-Identifier: MIT OR Apache-2.0
//! One DNS query by UDP, from a socket of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE, rdata::RData};

/// The name that the world's DNS server knows.
pub const NAME: &str = "answer.shunt.test";
/// Its IPv4 address, of the range for documentation.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// Its IPv6 address, of the range for documentation.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

const MAX_ANSWER_BYTES: usize = 512;

/// Asks for the IPv4 address of [`NAME`]; with an even `id` by a socket that is connected, with an odd one by one that is not,
/// because clients do either.
///
/// # Errors
/// When no right answer comes within `limit`, or it comes from another address than was asked.
pub fn query(server: SocketAddr, id: u16, limit: Duration) -> io::Result<()> {
    let any = if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(limit))?;
    let question = message(id).map_err(invalid)?;
    let mut buffer = [0; MAX_ANSWER_BYTES];
    let length = if id.is_multiple_of(2) {
        socket.connect(server)?;
        socket.send(&question)?;
        socket.recv(&mut buffer)?
    } else {
        socket.send_to(&question, server)?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        if from != server {
            return Err(invalid(format!("{from} answers for {server}")));
        }
        length
    };
    let answer = Packet::parse(&buffer[..length]).map_err(invalid)?;
    let address = answer.answers.iter().find_map(|record| match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from(a.address)),
        _ => None,
    });
    if answer.id() != id || address != Some(ADDRESS_V4) {
        return Err(invalid(format!("wrong answer: {answer:?}")));
    }
    Ok(())
}

fn message(id: u16) -> simple_dns::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(NAME)?, TYPE::A.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec()
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
