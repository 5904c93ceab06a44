//! A report for a CI job: Markdown for its summary, JUnit for its list of tests.

use super::page::escape;
use super::report::{Comparison, Report, Verdict};
use super::text::COLUMNS;

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let plain =
        |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ").replace('<', "&lt;");
    let mut out = format!("## DNS latency\n\n{}\n\n", plain(&report.headline()));
    out += &row(&COLUMNS.map(str::to_owned));
    out += &format!(
        "|{}\n",
        COLUMNS.map(|name| if name == "server" { "---|" } else { "--:|" }).concat()
    );
    for cells in report.rows() {
        out += &row(&cells.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }
    out.push('\n');
    for (holds, text) in verdicts(report) {
        out += &format!("- {} {}\n", if holds { "✅" } else { "❌" }, plain(&text));
    }
    for text in report
        .notes()
        .iter()
        .chain(&report.differences.iter().map(Comparison::text).collect::<Vec<_>>())
    {
        out += &format!("- {}\n", plain(text));
    }
    out
}

/// Each gate, and each comparison with the baseline: whether it holds, and its text.
pub(super) fn verdicts(report: &Report) -> Vec<(bool, String)> {
    let gates = report.gates.iter().map(|verdict| (verdict.holds, Verdict::text(verdict)));
    let baseline = report.baseline.iter().map(|one| (one.holds, Comparison::text(one)));
    gates.chain(baseline).collect()
}

/// The report as JUnit: a test case for each gate; without gates one that says that it ran.
pub fn junit(report: &Report) -> String {
    let ran = (report.is_complete, "it ran to its end".to_owned());
    let cases: Vec<_> = std::iter::once(ran).chain(verdicts(report)).collect();
    let failures = cases.iter().filter(|(holds, _)| !holds).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n<testsuite name=\"nodens bench\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" \
         time=\"{:.3}\">\n",
        cases.len(),
        report.load.duration_s
    );
    for (holds, text) in &cases {
        // The name must not depend on what was measured: CI follows it from run to run.
        let name = text.trim_start_matches("holds: ").trim_start_matches("FAILS: ");
        let name = escape(name.split([':', ';']).next().unwrap_or(name));
        out += &format!("<testcase classname=\"nodens.bench\" name=\"{name}\">");
        if !holds {
            out += &format!("<failure message=\"{0}\">{0}</failure>", escape(text));
        }
        out += "</testcase>\n";
    }
    out += &format!("<system-out>{}</system-out>\n", escape(&report.to_string()));
    out + "</testsuite>\n</testsuites>\n"
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_failed_gate_is_a_failed_test_and_strangers_text_is_escaped() {
        let mut report = report();
        let verdict = Verdict {
            gate: "lost > 0".to_owned(),
            server: "a|b<c>&\"".to_owned(),
            value: "5".to_owned(),
            holds: false,
        };
        report.gates = vec![verdict];
        let text = junit(&report);
        assert!(text.contains("tests=\"2\" failures=\"1\""), "{text}");
        assert!(text.contains(
            "<failure message=\"FAILS: fail if lost &gt; 0 (a|b&lt;c&gt;&amp;&quot;: 5)\""
        ));
        let text = markdown(&report);
        assert!(text.contains("❌ FAILS: fail if lost > 0 (a\\|b&lt;c>&\": 5)"), "{text}");
        assert!(text.contains("| server | lookups | p50 |"), "{text}");
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| row.matches(" | ").count() + 2 >= 2), "{text}");
    }
}
