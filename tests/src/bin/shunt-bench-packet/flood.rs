// SPDX-License-Identifier: MIT OR Apache-2.0
//! A flood of SYNs, of which every second is answered, but by no client acknowledged: what one costs when tables are full, which
//! of the established flows live on, and whether new clients still get a connection.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_common::bench::{FRAME_LEN_V4, Script};
use shunt_tests::{
    packets::{Rig, Target, UPLINK, Wrapper},
    reference::{Door, Verdict, Version, is_sound},
};

use crate::{
    case::{BARE, end},
    node,
    report::{Shall, Turns},
    stage::{Aside, Effort, Share, Stage, Turn},
    talk::{Talk, script},
};

/// Its row.
const NAME: &str = "SYN of a flood, half of them answered";
/// SYNs of a script.
const PAIR: u32 = 2;
/// Flows that were established before.
const ESTABLISHED: u32 = 8192;
/// New clients that try to connect.
const TRIES: u32 = 100;
/// SYNs of the flood between two packets of theirs: a millisecond of a million a second.
const BETWEEN: u32 = 1000;

/// The flood, in progress.
pub struct Flood<'a> {
    rig: &'a mut Rig,
    wrapper: Wrapper,
    /// Two SYNs and an answer to the second.
    syns: Script,
    /// Of the flood in a turn.
    syns_a_turn: u32,
    /// The next packet of each established flow.
    established: Script,
    /// What became of that before the flood.
    before: Vec<Vec<u8>>,
}

impl<'a> Flood<'a> {
    /// Establishes flows, exchanges all backends for others, and lets half of the flood come.
    pub fn prepare(rig: &'a mut Rig, effort: Effort) -> Result<Self> {
        let frontend = node::elsewhere(Version::V4);
        let (living, flood) = (Talk::xdp(end("203.0.113.0"), frontend), Talk::xdp(end("10.2.128.0"), frontend));
        let mut syns = script(&[vec![flood.syn()], flood.half_open()].concat(), UPLINK);
        syns.steps[0].ends_flow = 1;
        syns.mask = (1 << 22) - 1;
        let handshake = Script { mask: ESTABLISHED - 1, ..script(&living.handshake(), UPLINK) };
        let established = Script { mask: ESTABLISHED - 1, ..script(&[living.ack()], UPLINK) };
        let mut wrapper = Wrapper::load()?;
        wrapper.aim(rig.object(), Target::Doors)?;
        wrapper.run(Door::Xdp, Version::V4, &handshake, ESTABLISHED * handshake.count)?;
        let syns_a_turn = (effort.syns / 2 / effort.turns()).max(PAIR);
        let mut flood = Self { rig, wrapper, syns, syns_a_turn, established, before: Vec::new() };
        flood.before = flood.look()?;
        // A flow that was lost and is decided again shall not look like one that lives.
        node::exchange_backends(flood.rig)?;
        ensure!(flood.look()? == flood.before, "established flows have moved to other backends before the flood");
        flood.pour(effort.syns / 2)?;
        Ok(flood)
    }

    /// What becomes of the next packet of each established flow.
    fn look(&mut self) -> Result<Vec<Vec<u8>>> {
        self.wrapper.aim(self.rig.object(), Target::Doors)?;
        let mut script = self.established;
        let mut frames = Vec::new();
        for flow in 0..ESTABLISHED {
            script.counter = flow;
            frames.push(self.wrapper.run(Door::Xdp, Version::V4, &script, 1)?.frame);
        }
        Ok(frames)
    }

    /// So many SYNs of the flood.
    fn pour(&mut self, syns: u32) -> Result<Duration> {
        let pairs = syns / PAIR;
        let ran = self.wrapper.run(Door::Xdp, Version::V4, &self.syns, pairs * self.syns.count)?;
        self.syns.counter += pairs * PAIR;
        Ok(ran.time)
    }

    /// Whether a new client gets a connection while the flood goes on: its SYN is answered, and what it says next goes where
    /// that went. It sends nothing twice: the first second has to do.
    fn connects(&mut self, client: u32) -> Result<bool> {
        let talk = Talk::xdp(end("203.0.113.64"), node::elsewhere(Version::V4));
        let lines = [talk.handshake(), vec![talk.ack(), talk.reply()]].concat();
        let script = Script { mask: TRIES.next_power_of_two() - 1, counter: client, ..script(&lines, UPLINK) };
        let mut left: Vec<Vec<u8>> = Vec::new();
        for next in 0..script.count {
            let before = left.last().cloned().unwrap_or_else(|| vec![0; FRAME_LEN_V4]);
            let ran = self.wrapper.step(&before, Door::Xdp, Version::V4, &Script { next, ..script })?;
            if ran.verdict != Some(Verdict::Transmit) || !is_sound(&ran.frame) {
                return Ok(false);
            }
            left.push(ran.frame);
            self.pour(BETWEEN)?;
        }
        let ends: Vec<&[u8]> = left.iter().map(|frame| &frame[26..38]).collect();
        Ok(ends[0] == ends[2] && ends[2] == ends[3] && ends[1] == ends[4])
    }
}

impl Stage for Flood<'_> {
    fn rows(&self) -> Vec<Turns> {
        let shall = Some(Shall { of: None, share: 0.26 });
        vec![Turns { bare: Some(BARE), shall, ..Turns::of(NAME) }]
    }

    fn turn(&mut self, _row: usize) -> Result<Turn> {
        let counter = self.syns.counter;
        self.wrapper.aim(self.rig.object(), Target::Floor)?;
        let floor = self.pour(self.syns_a_turn)?;
        // They have come to nothing.
        self.syns.counter = counter;
        self.wrapper.aim(self.rig.object(), Target::Doors)?;
        let gross = self.pour(self.syns_a_turn)?;
        Ok(Turn::new(floor, gross, self.syns_a_turn / PAIR * PAIR))
    }

    fn finish(&mut self) -> Result<Aside> {
        self.wrapper.aim(self.rig.object(), Target::Doors)?;
        let mut connected = 0;
        for client in 0..TRIES {
            connected += u32::from(self.connects(client)?);
        }
        let after = self.look()?;
        let living = self.before.iter().zip(&after).filter(|(before, after)| before == after).count() as u32;
        let share = |name: &str, good, of, shall| Share { name: name.to_owned(), good, of, shall };
        let shares = vec![
            share("established flows that live after the flood", living, ESTABLISHED, 0.999),
            share("new clients that connect at once within the flood", connected, TRIES, 0.99),
        ];
        Ok(Aside { shares, ..Aside::default() })
    }
}
