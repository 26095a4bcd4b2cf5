//! Times steps of the networks of a sweep on request, so that another program can alternate with it:
//! `scripts/sweep_ratio.py` does so with the same networks in PyTorch. The argument is a preset. The first line of standard
//! output lists its combinations as JSON. Each line of standard input is the number of a combination, `train` or `forward`,
//! and a number of steps; the answer is the time of each step in milliseconds.

use std::{io::BufRead, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use candlepower::{
    runner::{in_one_line, let_waiting_threads_sleep},
    scenario::Phase,
    workload::{
        Workload,
        series::{Combination, SeriesGrid, SeriesWorkload},
    },
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    in_one_line(|| answer().map(|()| ExitCode::SUCCESS))
}

fn answer() -> Result<()> {
    let_waiting_threads_sleep();
    let preset = std::env::args().nth(1).context("name a preset of the sweep")?;
    let grid = SeriesGrid::preset(&preset)?;
    ensure!(
        grid.accumulate == 1 && !grid.gradient_checkpointing,
        "{preset}: only plain steps of one batch are compared"
    );
    let combinations = grid.combinations()?;
    println!("{}", json!(combinations.iter().map(describe).collect::<Vec<_>>()));
    let mut running: Option<(String, SeriesWorkload)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (name, steps) =
            line.rsplit_once(' ').with_context(|| format!("'{line}' is not a number, a phase and steps"))?;
        let (number, phase) = name.split_once(' ').with_context(|| format!("'{name}' is not a number and a phase"))?;
        let phase = match phase {
            "train" => Phase::Train,
            "forward" => Phase::Forward,
            other => bail!("unknown phase '{other}': train or forward"),
        };
        let mut workload = match running.take() {
            Some((running, workload)) if running == name => workload,
            _ => {
                let combination = combinations.get(number.parse::<usize>()?).context("there is no such combination")?;
                SeriesWorkload::new(combination, phase, &grid)?
            }
        };
        let steps = (0..steps.parse::<usize>()?).map(|_| Ok(workload.iterate()?.time.as_secs_f64() * 1e3));
        let times = steps.collect::<Result<Vec<_>>>()?;
        println!("{}", times.iter().map(|time| format!("{time:.4}")).collect::<Vec<_>>().join(" "));
        running = Some((name.to_owned(), workload));
    }
    Ok(())
}

fn describe(Combination { name, task, .. }: &Combination) -> Value {
    let (window, training) = (&task.window, &task.training);
    json!({
        "name": name,
        "architecture": task.architecture,
        "sizes": task.sizes,
        "batch": window.batch,
        "time": window.time,
        "horizon": window.horizon,
        "outputs": window.outputs,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "betas": [training.betas.0, training.betas.1],
        "clip_norm": training.clip_norm,
        "dropout": training.dropout,
    })
}
