//! The completion curve: how many hosts were through and how many bytes were stored by when, as points and as an SVG.

use std::fmt::Write as _;

use weighlock_protocol::Time;

/// Width and height of the picture, in pixels, and its margins.
const SIZE: (f64, f64) = (720.0, 420.0);
const MARGIN: (f64, f64) = (60.0, 50.0);

/// Points by time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Curve {
    /// When, how many hosts were complete, how many bytes were stored by those that the run is for.
    pub points: Vec<(Time, usize, u64)>,
}

/// What a curve is drawn against.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Over the picture.
    pub title: String,
    /// The lower bound, in nanoseconds.
    pub bound_ns: u64,
    /// Hosts that the run is for.
    pub hosts: usize,
    /// Bytes that they lacked at first.
    pub bytes: u64,
}

impl Curve {
    /// Adds a point. Time never decreases.
    pub fn push(&mut self, at: Time, complete: usize, bytes: u64) {
        self.points.push((at, complete, bytes));
    }

    /// The picture: share of hosts complete and share of bytes stored over time in units of the bound, with the bound
    /// itself and the straight line to it.
    pub fn svg(&self, frame: &Frame) -> String {
        let bound = frame.bound_ns.max(1) as f64;
        let last = self.points.last().map_or(1.0, |(at, _, _)| at.0 as f64 / bound).max(1.0);
        let wide = last * 1.04;
        let x = |at: f64| MARGIN.0 + (SIZE.0 - 2.0 * MARGIN.0) * at / wide;
        let y = |share: f64| SIZE.1 - MARGIN.1 - (SIZE.1 - 2.0 * MARGIN.1) * share;
        let line = |share: &dyn Fn(&(Time, usize, u64)) -> f64| {
            let mut out = String::new();
            for point in &self.points {
                let (px, py) = (x(point.0.0 as f64 / bound), y(share(point)));
                let _ = write!(out, "{px:.1},{py:.1} ");
            }
            out
        };
        let hosts = line(&|(_, complete, _)| *complete as f64 / frame.hosts.max(1) as f64);
        let bytes = line(&|(_, _, bytes)| *bytes as f64 / frame.bytes.max(1) as f64);
        let (left, right, top, bottom) = (x(0.0), x(wide), y(1.0), y(0.0));
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n",
            SIZE.0, SIZE.1
        );
        let _ = writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
        let _ = writeln!(out, "<text x=\"{left}\" y=\"24\" font-size=\"14\">{}</text>", frame.title);
        for quarters in 0..=4u8 {
            let at = y(f64::from(quarters) / 4.0);
            let percent = 25 * u32::from(quarters);
            let _ = writeln!(out, "<path d=\"M{left:.1} {at:.1}H{right:.1}\" stroke=\"#dddddd\"/>");
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
                left - 6.0,
                at + 4.0
            );
        }
        let step = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 100.0];
        let step = step.into_iter().find(|step| wide / step <= 10.0).unwrap_or(wide / 5.0);
        let mut at = 0.0;
        while at <= wide {
            let (px, py) = (x(at), bottom + 18.0);
            let _ = writeln!(out, "<text x=\"{px:.1}\" y=\"{py:.1}\" text-anchor=\"middle\">{at:.2}</text>");
            at += step;
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">time in units of the lower bound ({:.3} s)</text>",
            (left + right) / 2.0,
            SIZE.1 - 12.0,
            bound / 1e9
        );
        let at = x(1.0);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {top:.1}V{bottom:.1}\" stroke=\"#888888\" stroke-dasharray=\"4 3\"/>"
        );
        let _ = writeln!(
            out,
            "<path d=\"M{left:.1} {bottom:.1}L{at:.1} {top:.1}\" stroke=\"#888888\" stroke-dasharray=\"1 3\"/>"
        );
        for (points, color, what, row) in
            [(bytes, "#1f77b4", "bytes stored", 0.0), (hosts, "#d62728", "hosts complete", 18.0)]
        {
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                points.trim_end()
            );
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{what}</text>",
                left + 10.0,
                top + 16.0 + row
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_holds_both_curves_and_the_bound() {
        let mut curve = Curve::default();
        curve.push(Time(0), 0, 0);
        curve.push(Time(1_000), 0, 50);
        curve.push(Time(2_000), 4, 100);
        let frame = Frame { title: "four hosts".into(), bound_ns: 1_000, hosts: 4, bytes: 100 };
        let svg = curve.svg(&frame);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("four hosts") && svg.contains("hosts complete"));
        let lines: Vec<&str> = svg.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!(lines.len(), 2);
        // The bytes end at the top right, half of them lie in the middle of the height.
        assert!(lines[0].contains("60.0,370.0 348.5,210.0 636.9,50.0"), "{}", lines[0]);
    }
}
