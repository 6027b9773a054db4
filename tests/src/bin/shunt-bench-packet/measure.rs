// SPDX-License-Identifier: MIT OR Apache-2.0
//! All rows whose tables have room. Each first proves that it does what it claims to measure.

use std::{sync::Barrier, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_common::bench::{BARE_BACKEND, BARE_PORT, Script};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use shunt_tests::{
    packets::{Ran, Rig, Size, Target, Wrapper, sizes},
    reference::{Door, Verdict, is_sound},
};

use crate::{
    case::{Case, all},
    node,
    report::Turns,
    stage::{Aside, Effort, MapMemory, Program, Stage, Turn},
};

/// Flows that are looked at before and after the measurement.
const SAMPLES: u32 = 256;
/// The calling thread, to the kernel.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// All of them, in progress.
pub struct Rows<'a> {
    rig: &'a Rig,
    wrapper: Wrapper,
    /// For a second CPU, if there is one.
    second: Option<(Wrapper, CpuSet)>,
    turns: u32,
    rows: Vec<Row>,
}

/// One of them.
struct Row {
    case: Case,
    /// What its turns send.
    script: Script,
    /// What became of its flows' packets before the measurement.
    before: Vec<Vec<u8>>,
}

impl<'a> Rows<'a> {
    /// Begins all flows.
    pub fn prepare(rig: &'a mut Rig, effort: Effort) -> Result<Self> {
        let other_cpu = other_cpu()?;
        let mut cases = all(other_cpu.is_some());
        let seen = cases.iter_mut().map(|case| begin(rig, case).with_context(|| format!("`{}`", case.name)));
        // All through kernel and model first: of what the wrapper sends, the model knows nothing.
        let seen = seen.collect::<Result<Vec<_>>>()?;
        node::compare(rig)?;
        let second = other_cpu.map(|cpu| Wrapper::load().map(|wrapper| (wrapper, cpu))).transpose()?;
        let mut rows = Self { rig, wrapper: Wrapper::load()?, second, turns: effort.turns(), rows: Vec::new() };
        for (case, seen) in cases.into_iter().zip(&seen) {
            let script = case.script();
            rows.open(&case, seen).with_context(|| format!("before `{}`", case.name))?;
            rows.rows.push(Row { case, script, before: Vec::new() });
        }
        for row in 0..rows.rows.len() {
            rows.rows[row].before = rows.sample(row)?;
            let row = &mut rows.rows[row];
            // The first flow of its kind has begun just now.
            row.script.counter = u32::from(row.case.staying() == 0);
        }
        Ok(rows)
    }

    /// Lets the wrapper begin all flows of a case. It must write the very packets that kernel and model have seen, and the same must
    /// come of them.
    fn open(&mut self, case: &Case, seen: &[Vec<u8>]) -> Result<()> {
        if case.target == Target::Bare {
            self.wrapper.aim(self.rig.object(), Target::Fill)?;
            let fill = Script { stride: 1, ..case.script() };
            let ran = self.wrapper.run(Door::Xdp, case.version, &fill, case.staying())?;
            ensure_verdict(&ran, Verdict::Pass)?;
            self.wrapper.aim(self.rig.object(), Target::Bare)?;
            let frames = self.say_once(case, 0)?;
            let backend = [&BARE_BACKEND[..], &case.lines[0].frame(&[])[34..36], &BARE_PORT.to_be_bytes()].concat();
            ensure!(frames[0][30..38] == backend, "not to the bare table's backend: {:02x?}", frames[0]);
            return Ok(());
        }
        self.wrapper.aim(self.rig.object(), Target::Doors)?;
        if !case.opening.is_empty() {
            let packets = case.staying() * case.opening.len() as u32;
            self.wrapper.run(case.opening_door(), case.version, &case.opening_script(), packets)?;
        }
        let frames = self.say_once(case, 0)?;
        ensure!(frames == seen, "{frames:02x?}, not {seen:02x?}");
        Ok(())
    }

    /// What becomes of the packets of one flow.
    fn say_once(&self, case: &Case, flow: u32) -> Result<Vec<Vec<u8>>> {
        let script = case.script_at(flow);
        let mut before = case.lines[0].frame(&[]);
        let mut frames = Vec::new();
        for next in 0..script.count {
            let ran = self.wrapper.step(&before, case.door, case.version, &Script { next, ..script })?;
            ensure_verdict(&ran, case.verdict)?;
            ensure!(is_sound(&ran.frame), "a wrong checksum: {:02x?}", ran.frame);
            before.clone_from(&ran.frame);
            frames.push(ran.frame);
        }
        Ok(frames)
    }

    /// What becomes of packets of flows spread over all of the row, each proven sound; nothing where flows don't stay.
    fn sample(&mut self, row: usize) -> Result<Vec<Vec<u8>>> {
        let case = self.rows[row].case.clone();
        self.wrapper.aim(self.rig.object(), case.target)?;
        let count = case.staying();
        let flows = (0..count).step_by((count / SAMPLES).max(1) as usize);
        let frames =
            flows.map(|flow| self.say_once(&case, flow).with_context(|| format!("{}, flow {flow}", case.name)));
        Ok(frames.collect::<Result<Vec<_>>>()?.concat())
    }

    /// CPU time of a turn of a row, at a target; with two CPUs the mean of both.
    fn time(&mut self, row: usize, target: Target) -> Result<Duration> {
        let Row { case, script, .. } = &self.rows[row];
        let packets = case.times(self.turns) * script.count;
        let run = |wrapper: &Wrapper, script: &Script| -> Result<Duration> {
            let ran = wrapper.run(case.door, case.version, script, packets)?;
            if target == case.target {
                ensure_verdict(&ran, case.verdict)?;
            }
            Ok(ran.time)
        };
        self.wrapper.aim(self.rig.object(), target)?;
        let Some((second, cpu)) = self.second.as_mut().filter(|_| case.cpus == 2) else {
            return run(&self.wrapper, script);
        };
        second.aim(self.rig.object(), target)?;
        let (second, wrapper) = (&*second, &self.wrapper);
        let both_ready = Barrier::new(2);
        // Half of the flows away, so that the two don't meet on every line.
        let elsewhere = Script { counter: case.staying() / 2, ..*script };
        let beside = || {
            let placed = sched_setaffinity(THIS_THREAD, cpu).context("can't choose the CPU");
            both_ready.wait();
            placed.and_then(|()| run(second, &elsewhere))
        };
        let times = thread::scope(|scope| {
            let beside = scope.spawn(beside);
            both_ready.wait();
            let mine = run(wrapper, script);
            [mine, beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
        });
        let [mine, beside] = times;
        Ok((mine? + beside?) / 2)
    }
}

impl Stage for Rows<'_> {
    fn rows(&self) -> Vec<Turns> {
        let cases = self.rows.iter().map(|row| &row.case);
        cases
            .map(|case| Turns {
                bare: (case.target == Target::Doors).then_some(case.bare),
                shall: case.shall,
                ..Turns::of(case.name)
            })
            .collect()
    }

    fn turn(&mut self, row: usize) -> Result<Turn> {
        let target = self.rows[row].case.target;
        let floor = self.time(row, Target::Floor)?;
        let gross = self.time(row, target).with_context(|| self.rows[row].case.name)?;
        let Row { case, script, .. } = &mut self.rows[row];
        let times = case.times(self.turns);
        if case.staying() == 0 {
            script.counter += times;
        }
        Ok(Turn::new(floor, gross, times))
    }

    fn finish(&mut self) -> Result<Aside> {
        for row in 0..self.rows.len() {
            let after = self.sample(row)?;
            let Row { case, before, .. } = &self.rows[row];
            ensure!(after == *before, "{}: packets fare otherwise than before the measurement", case.name);
        }
        let program = |size: Size| Program {
            name: size.name,
            instructions: size.instructions,
            jitted_bytes: size.jitted,
            verified: size.verified.unwrap_or_default(),
        };
        let memory = |(name, entries): (&str, u32)| {
            Ok(MapMemory { name: name.to_owned(), entries, bytes: self.rig.object().memory(name)? })
        };
        Ok(Aside {
            programs: sizes()?.into_iter().map(program).collect(),
            maps: node::FLOW_MAPS.into_iter().map(memory).collect::<Result<_>>()?,
            shares: Vec::new(),
        })
    }
}

/// Begins flow 0 of a case, and sees its packets through kernel and model. Gives those that are measured as they left; none for
/// other programs than ours.
fn begin(rig: &mut Rig, case: &mut Case) -> Result<Vec<Vec<u8>>> {
    if case.target != Target::Doors {
        return Ok(Vec::new());
    }
    let mut before = Vec::new();
    for line in &case.opening {
        (_, before) = node::send(rig, line.door, case.ifindex, line.frame(&before))?;
    }
    if case.is_reply {
        case.lines[0] = case.lines[0].answer_to(&before);
    }
    let mut seen = Vec::new();
    for line in &case.lines {
        let (verdict, frame) = node::send(rig, line.door, case.ifindex, line.frame(&before))?;
        ensure!(verdict == case.verdict, "{verdict:?}, not {:?}", case.verdict);
        before.clone_from(&frame);
        seen.push(frame);
    }
    Ok(seen)
}

fn ensure_verdict(ran: &Ran, verdict: Verdict) -> Result<()> {
    ensure!(ran.verdict == Some(verdict), "{:?}, not {verdict:?}", ran.verdict);
    Ok(())
}

/// A CPU that this process may use, but this thread does not.
fn other_cpu() -> Result<Option<CpuSet>> {
    let allowed = sched_getaffinity(Pid::this()).context("can't tell on which CPUs this may run")?;
    let mine = sched_getaffinity(THIS_THREAD).context("can't tell the CPU")?;
    let is_other = |&cpu: &usize| allowed.is_set(cpu).unwrap_or(false) && !mine.is_set(cpu).unwrap_or(true);
    let Some(cpu) = (0..CpuSet::count()).find(is_other) else { return Ok(None) };
    let mut only = CpuSet::new();
    only.set(cpu).context("a CPU too many")?;
    Ok(Some(only))
}
