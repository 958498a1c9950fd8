//! The figures, printed as they are measured: ours, runc's, and the target.

use std::time::Duration;

/// Counts the figures that miss their target.
#[derive(Debug)]
pub(crate) struct Table {
    missed: Vec<String>,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
    Nothing,
}

impl Table {
    pub(crate) fn new() -> Self {
        println!("{:<58} {:>10} {:>10} {:>10}", "", "kata-se", "reference", "wanted");
        Self { missed: Vec::new() }
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("{text}");
    }

    pub(crate) fn row(&mut self, name: &str, ours: f64, other: Option<f64>, wanted: Wanted) {
        let (text, met) = match wanted {
            Wanted::AtMost(most) => (format!("<= {most}"), ours <= most),
            Wanted::AtLeast(least) => (format!(">= {least}"), ours >= least),
            Wanted::Nothing => (String::new(), true),
        };
        let other = other.map(|value| format!("{value:.1}")).unwrap_or_default();
        let mark = if met { "" } else { "  MISSED" };
        println!("  {name:<56} {ours:>10.1} {other:>10} {text:>10}{mark}");
        if !met {
            self.missed.push(name.to_owned());
        }
    }

    pub(crate) fn verdict(&self) {
        match self.missed.as_slice() {
            [] => println!("every figure is reached"),
            missed => println!("{} missed: {}", missed.len(), missed.join("; ")),
        }
    }
}

/// The median, in milliseconds.
pub(crate) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    ms(times.get(times.len() / 2).copied().unwrap_or_default())
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
