//! A benchmark's report for people: a table, a histogram, remarks.

use std::io::{self, IsTerminal, Write};

use crate::bench::{Percentiles, PlanReport, Report, ResumeReport, Round, ShapeReport};

/// Width of the longest bar of a histogram.
const BAR: f64 = 40.0;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// Colours and bold.
    pub(super) colour: bool,
}

impl Style {
    /// What standard output wants: colours on a terminal, unless `NO_COLOR` says otherwise.
    pub(super) fn of_stdout() -> Self {
        Self { colour: io::stdout().is_terminal() && may_colour() }
    }

    /// The same for standard error.
    pub(super) fn of_stderr() -> Self {
        Self { colour: io::stderr().is_terminal() && may_colour() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `NO_COLOR` counts when it is set to anything but nothing.
fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints everything: with one shape in detail, with several as one table.
pub(super) fn print(report: &Report, style: Style, out: &mut impl Write) -> io::Result<()> {
    if report.shapes.is_empty() {
        return writeln!(out, "Nothing was measured.");
    }
    if let [shape] = report.shapes.as_slice() {
        detail(shape, style, out)?;
    } else {
        table(&report.shapes, style, out)?;
    }
    warnings(&report.shapes, style, out)?;
    if report.interrupted {
        writeln!(out, "{}", style.yellow("Ended early; the figures cover what was measured."))?;
    }
    Ok(())
}

fn detail(shape: &ShapeReport, style: Style, out: &mut impl Write) -> io::Result<()> {
    let round = &shape.summary;
    writeln!(out, "{}", style.bold(&headline(&shape.plan)))?;
    if shape.rounds.len() > 1 {
        writeln!(out, "  medians of {} rounds", shape.rounds.len())?;
    }
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<12} {value}");
    line("sent", &format!("{}/s", count(round.sent_per_s)))?;
    line("delivered", &format!("{}/s{}", count(round.delivered_per_s), spread(&shape.rounds)))?;
    line("together", &format!("{}/s", count(round.messages_per_s)))?;
    line("faults", &if has_faults(round) { style.red(&faults(round)) } else { faults(round) })?;
    if let Some(broker) = &round.broker {
        let per_delivery = cpu(broker.cpu_us_per_delivery);
        line(
            "broker",
            &format!(
                "{per_delivery} of processor per delivery, {:.2} processors, {} of memory at most",
                broker.cpu_cores,
                bytes(broker.rss_peak_bytes as f64)
            ),
        )?;
    }
    line(
        "generator",
        &format!(
            "{} of processor per delivery, {:.2} processors, busiest thread {:.0} %",
            cpu(round.generator.cpu_us_per_delivery),
            round.generator.cpu_cores,
            round.generator.busiest_thread * 100.0
        ),
    )?;
    if let Some(idle) = &round.idle {
        let each = idle.bytes_per_connection.map_or("unknown".to_owned(), bytes);
        line("idle", &format!("{} connections, {each} of broker's memory each", idle.connections))?;
    }
    if let Some(churn) = round.churn_per_s {
        line("churn", &format!("{churn:.0} subscriptions made and unmade per second"))?;
    }
    if let Some(resume) = &round.resume {
        line("resumed", &resumed(resume))?;
    }
    latencies(round, style, out)
}

fn headline(plan: &PlanReport) -> String {
    let mut text = format!("{}, {} ", plan.shape, plan.clients);
    text += match (plan.shape, plan.clients) {
        (crate::bench::Shape::Pair, 1) => "pair",
        (crate::bench::Shape::Pair, _) => "pairs",
        (crate::bench::Shape::FanIn, _) => "publishers",
        (crate::bench::Shape::FanOut, _) => "subscribers",
        (crate::bench::Shape::Mesh, _) => "clients",
    };
    let qos = if plan.publish_qos == plan.subscribe_qos {
        format!("QoS {}", plan.publish_qos)
    } else {
        format!("QoS {} to {}", plan.publish_qos, plan.subscribe_qos)
    };
    text += &format!(", {qos}, {}-byte payloads, MQTT {}", plan.payload_bytes, plan.protocol);
    if plan.topics > 1 {
        text += &format!(", {} topics", plan.topics);
    }
    if plan.wildcards > 0.0 {
        text += &format!(", {:.0} % of filters with wildcards", plan.wildcards * 100.0);
    }
    if plan.persistent {
        text += ", persistent sessions";
    }
    if plan.offline > 0 {
        let only = if plan.offline_only { " only" } else { "" };
        text += &format!(", {} offline{only}", plan.offline);
    }
    match plan.rate {
        Some(rate) => text += &format!(", {} messages/s", count(rate)),
        None => text += ", unthrottled",
    }
    text + &format!(" (seed {})", plan.seed)
}

fn resumed(resume: &ResumeReport) -> String {
    let mut text = format!(
        "{} sessions got {} messages, {}/s, {} lost, {} twice, {} out of order",
        resume.sessions,
        resume.delivered,
        count(resume.delivered_per_s),
        resume.lost,
        resume.duplicates,
        resume.out_of_order
    );
    let memory = (resume.rss_before_bytes, resume.rss_peak_bytes, resume.rss_after_bytes);
    if let (Some(before), Some(peak), Some(after)) = memory {
        let [before, peak, after] = [before, peak, after].map(|value| bytes(value as f64));
        text += &format!("; memory of the broker {before}, {peak} at most, {after} after");
    }
    text
}

/// Lowest and highest round, where there are several.
fn spread(rounds: &[Round]) -> String {
    let rates = || rounds.iter().map(|round| round.delivered_per_s);
    if rounds.len() < 2 {
        return String::new();
    }
    let (low, high) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    format!(" ({} to {})", count(low), count(high))
}

fn has_faults(round: &Round) -> bool {
    let resumed = round.resume.as_ref();
    let resumed = resumed.map_or(0, |one| one.lost + one.duplicates + one.out_of_order);
    round.lost + round.duplicates + round.out_of_order + round.refused + round.broken_connections
        > 0
        || resumed > 0
}

fn faults(round: &Round) -> String {
    let mut text = format!(
        "{} lost, {} twice, {} out of order",
        round.lost, round.duplicates, round.out_of_order
    );
    if round.under_way > 0 {
        text += &format!(", {} still under way", round.under_way);
    }
    if round.refused > 0 {
        text += &format!(", {} refused", round.refused);
    }
    if round.broken_connections > 0 {
        text += &format!(", {} connections broke", round.broken_connections);
    }
    text
}

fn latencies(round: &Round, style: Style, out: &mut impl Write) -> io::Result<()> {
    let latency = &round.latency;
    let rows = [
        ("delivery", &latency.delivery),
        ("  uncorrected", &latency.delivery_uncorrected),
        ("acknowledged", &latency.acknowledgement),
        ("  uncorrected", &latency.acknowledgement_uncorrected),
    ];
    if rows.iter().all(|(_, percentiles)| percentiles.is_none()) {
        return Ok(());
    }
    let head = format!(
        "  {:<14}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "latency", "p50", "p90", "p99", "p99.9", "p99.99", "max"
    );
    writeln!(out, "\n{}", style.bold(&head))?;
    for (name, percentiles) in rows {
        if let Some(at) = percentiles {
            writeln!(
                out,
                "  {name:<14}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
                time(at.p50_us),
                time(at.p90_us),
                time(at.p99_us),
                time(at.p999_us),
                time(at.p9999_us),
                time(at.max_us)
            )?;
        }
    }
    match &latency.delivery {
        Some(delivery) => histogram(delivery, out),
        None => Ok(()),
    }
}

fn histogram(percentiles: &Percentiles, out: &mut impl Write) -> io::Result<()> {
    let highest = percentiles.histogram.iter().map(|bar| bar.count).max().unwrap_or(0).max(1);
    writeln!(out)?;
    for bar in &percentiles.histogram {
        let share = bar.count as f64 / percentiles.count.max(1) as f64;
        let width = bar.count as f64 / highest as f64 * BAR;
        // Whatever has any shows at least a dot.
        let drawn = match width.round() as usize {
            0 if bar.count > 0 => "·".to_owned(),
            width => "█".repeat(width),
        };
        let line =
            format!("  {:>9} {:>7.3} % {drawn}", format!("<{}", time(bar.to_us)), share * 100.0);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn table(shapes: &[ShapeReport], style: Style, out: &mut impl Write) -> io::Result<()> {
    let first = &shapes[0].plan;
    let rounds = shapes[0].rounds.len();
    let note = if rounds > 1 { format!(", medians of {rounds} rounds") } else { String::new() };
    writeln!(
        out,
        "QoS {}, {}-byte payloads, MQTT {}{note} (seed {})\n",
        first.publish_qos, first.payload_bytes, first.protocol, first.seed
    )?;
    let head = format!(
        "{:<9}{:>8}{:>10}{:>13}{:>12}{:>10}{:>10}{:>11}{:>10}{:>8}{:>8}{:>10}",
        "shape",
        "clients",
        "sent/s",
        "delivered/s",
        "together/s",
        "p50",
        "p99",
        "p99.99",
        "lost",
        "twice",
        "order",
        "CPU each",
    );
    let acknowledged = shapes.iter().any(|shape| shape.plan.publish_qos > 0);
    let head = if acknowledged { format!("{head}{:>11}", "ack. p99") } else { head };
    writeln!(out, "{}", style.bold(head.trim_end()))?;
    for shape in shapes {
        let round = &shape.summary;
        let latency = |value: fn(&Percentiles) -> f64| {
            round.latency.delivery.as_ref().map_or("-".to_owned(), |all| time(value(all)))
        };
        let line = format!(
            "{:<9}{:>8}{:>10}{:>13}{:>12}{:>10}{:>10}{:>11}{:>10}{:>8}{:>8}{:>10}",
            shape.plan.shape.to_string(),
            shape.plan.clients,
            count(round.sent_per_s),
            count(round.delivered_per_s),
            count(round.messages_per_s),
            latency(|all| all.p50_us),
            latency(|all| all.p99_us),
            latency(|all| all.p9999_us),
            round.lost,
            round.duplicates,
            round.out_of_order,
            round.broker.as_ref().map_or("-".to_owned(), |cost| cpu(cost.cpu_us_per_delivery)),
        );
        let line = match &round.latency.acknowledgement {
            Some(all) => format!("{line}{:>11}", time(all.p99_us)),
            None => line,
        };
        writeln!(out, "{}", if has_faults(round) { style.red(&line) } else { line })?;
    }
    let peak = shapes.iter().filter_map(|shape| shape.summary.broker.as_ref());
    if let Some(peak) = peak.map(|cost| cost.rss_peak_bytes).max() {
        writeln!(out, "\nThe broker had {} of memory at most.", bytes(peak as f64))?;
    }
    Ok(())
}

/// Each remark once, with the shapes that it is about.
fn warnings(shapes: &[ShapeReport], style: Style, out: &mut impl Write) -> io::Result<()> {
    let mut remarks: Vec<(String, Vec<String>)> = Vec::new();
    for shape in shapes {
        for warning in &shape.warnings {
            let text = warning.to_string();
            let name = shape.plan.shape.to_string();
            match remarks.iter_mut().find(|(known, _)| *known == text) {
                Some((_, names)) => names.push(name),
                None => remarks.push((text, vec![name])),
            }
        }
    }
    if !remarks.is_empty() {
        writeln!(out)?;
    }
    for (text, names) in remarks {
        let about = if shapes.len() > 1 && names.len() < shapes.len() {
            format!("{}: ", names.join(", "))
        } else {
            String::new()
        };
        writeln!(out, "{} {about}{text}", style.yellow("note:"))?;
    }
    Ok(())
}

/// Three significant digits and a unit: 12.3k, 4.56M.
fn count(value: f64) -> String {
    let (value, unit) = match value {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    if unit.is_empty() { format!("{value:.0}") } else { format!("{}{unit}", three_digits(value)) }
}

fn three_digits(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A time in microseconds, in a unit that suits it.
fn time(micros: f64) -> String {
    match micros {
        1e6.. => format!("{} s", three_digits(micros / 1e6)),
        1e3.. => format!("{} ms", three_digits(micros / 1e3)),
        _ => format!("{} µs", three_digits(micros)),
    }
}

fn cpu(micros: Option<f64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(micros @ ..0.1) => format!("{:.0} ns", micros * 1e3),
        Some(micros) => time(micros),
    }
}

fn bytes(value: f64) -> String {
    match value {
        1_073_741_824.0.. => format!("{} GiB", three_digits(value / 1_073_741_824.0)),
        1_048_576.0.. => format!("{} MiB", three_digits(value / 1_048_576.0)),
        1024.0.. => format!("{} KiB", three_digits(value / 1024.0)),
        _ => format!("{value:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(
            ["0", "9999", "10.0k", "1.23M", "456M"],
            [count(0.4), count(9_999.0), count(10_000.0), count(1_234_567.0), count(456e6)]
        );
        assert_eq!(
            ["0.50 µs", "12.3 µs", "1.00 ms", "2.50 s"],
            [time(0.5), time(12.345), time(1_000.0), time(2.5e6)]
        );
        assert_eq!(["-", "34 ns", "0.12 µs"], [cpu(None), cpu(Some(0.034)), cpu(Some(0.12))]);
        assert_eq!(["12 B", "1.50 KiB", "20.0 MiB"], [12.0, 1536.0, 20.0 * 1048576.0].map(bytes));
    }
}
