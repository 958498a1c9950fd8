//! A container's log as the kubelet reads it: `TIME STREAM F|P TEXT`, a line each.

use std::fs;
use std::path::Path;

/// One line of a log.
#[derive(Clone, Debug)]
pub struct Line {
    pub time: String,
    /// "stdout" or "stderr".
    pub stream: String,
    /// With its newline, if the container wrote one here.
    pub text: String,
}

/// Every complete line of a log; none if there is no such file. Panics on a malformed line.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse).collect()
}

fn parse(line: &str) -> Line {
    let bad = || -> ! { panic!("not a line of a CRI log: {line:?}") };
    let mut parts = line.splitn(4, ' ');
    let (Some(time), Some(stream), Some(tag), Some(text)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bad()
    };
    // RFC 3339 with nanoseconds.
    if time.len() < 20 || time.as_bytes().get(10) != Some(&b'T') || !matches!(stream, "stdout" | "stderr") {
        bad()
    }
    let text = match tag {
        "F" => text.to_owned(),
        "P" => text.trim_end_matches('\n').to_owned(),
        _ => bad(),
    };
    Line { time: time.to_owned(), stream: stream.to_owned(), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_long_line_are_joined_by_what_they_lack() {
        let whole = parse("2026-01-02T03:04:05.000000006Z stdout F with spaces \n");
        assert_eq!((whole.stream.as_str(), whole.text.as_str()), ("stdout", "with spaces \n"));
        assert_eq!(parse("2026-01-02T03:04:05.000000006Z stderr P part\n").text, "part");
    }
}
