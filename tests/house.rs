//! The repository tests itself: levels, fences, sizes, headlines, words, and that the README lists
//! every metric and every key.
//!
//! Each check is a function from one source file to complaints; each is also fed a bad file, so that
//! none of them can pass by being blind.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the bottom up. A module may import those of lower rows, never its own row's.
const LEVELS: &[&[&str]] = &[
    &["clock", "dns", "netlink", "shutdown", "pulse"],
    &["metrics"], // counts names and types, so it stands on dns
    &["config"],
    &["telemetry"], // takes its level and form as `config::Log`
    &["cache", "cluster", "upstream", "intercept"],
    &["resolve"],
    &["serve", "admin"],
    &["app"],
    &["cli"],
    &["main"],
];

/// The tools' wing: what each may import besides the two lowest rows of [`LEVELS`]. Only `cli` imports them.
const TOOLS: &[(&str, &[&str])] = &[
    ("stub", &[]),
    ("bench", &["stub"]),
    ("lab", &["stub", "bench"]),
    ("doctor", &["stub", "bench"]),
    ("testing", &["config", "upstream", "stub"]),
];

/// Which files may name a foreign crate. A path that ends in `/` means all files below it.
const FENCES: &[(&[&str], &[&str])] = &[
    (&["hickory_server"], &["src/serve/", "src/lab/"]),
    (&["hickory_resolver"], &["src/upstream/connection.rs", "src/upstream/dial.rs", "src/stub/"]),
    (
        &["hickory_proto"],
        &[
            "src/dns/",
            "src/serve/",
            "src/upstream/",
            "src/cluster/zone.rs",
            "src/stub/",
            "src/testing/",
            "src/config/", // static records are read from text by hickory's parser
            "src/resolve/alias.rs", // writes a chased CNAME and its target as one message
            "src/resolve/any.rs",
            "src/resolve/bailiwick.rs", // writes the HINFO of RFC 8482
            "src/lab/authority.rs",
            "src/resolve/rewrite.rs", // writes a response anew without some of its records
            "src/resolve/dns64.rs",   // writes a response anew with other addresses
        ],
    ),
    (&["rustls", "webpki_roots"], &["src/upstream/", "src/stub/stream.rs"]),
    (&["rustls_native_certs"], &["src/upstream/"]),
    (&["tokio_rustls"], &["src/stub/stream.rs", "src/upstream/dial.rs"]), // the bench asks by DNS over TLS
    (
        &["socket2", "libc"],
        &[
            "src/serve/socket.rs",
            "src/serve/batch.rs",
            "src/serve/system.rs",
            "src/upstream/lease.rs",
            "src/upstream/spare.rs",
            "src/lab/authority.rs", // receive buffers that hold a burst
            "src/lab/memory.rs",    // a file in memory
            "src/lab/shelter.rs",
            "src/lab/daemon.rs",
            "src/lab/namespace.rs",
            "src/intercept/socket.rs",
            "src/app/privileges.rs",
            "src/stub/sockets.rs",
        ],
    ),
    (&["moka"], &["src/cache/store.rs"]),
    (
        &["smallvec"],
        &[
            "src/resolve/bailiwick.rs",
            "src/serve/udp.rs",
            "src/upstream/candidate.rs",
            "src/upstream/exchange.rs",
        ],
    ),
    (&["netlink_sys", "netlink_packet_core", "netlink_packet_route"], &["src/netlink/"]),
    (&["hdrhistogram", "plotters", "indicatif"], &["src/bench/"]),
    (
        &["kube", "k8s_openapi", "http"],
        &[
            "src/cluster/feed.rs",
            "src/cluster/api.rs",
            "src/cluster/trouble.rs",
            "src/cluster/services.rs",
        ],
    ),
    (&["hyper_util", "hyper_rustls", "tower"], &["src/cluster/api.rs"]),
    (&["serde_saphyr"], &["src/cluster/files.rs"]),
    (&["axum"], &["src/admin/"]),
    (&["prometheus_client"], &["src/admin/", "src/metrics/"]),
    (&["clap", "clap_complete", "clap_mangen"], &["src/cli/", "src/main.rs"]),
    (&["toml", "strsim"], &["src/config/"]),
    (
        &["serde_json"],
        &[
            "src/admin/",
            "src/cli/",
            "src/cluster/feed.rs",
            "src/bench/baseline.rs",
            "src/lab/apiserver.rs",
        ],
    ),
    (&["tracing_subscriber"], &["src/telemetry.rs"]),
    (&["async_trait"], &["src/serve/handler.rs", "src/lab/authority.rs"]), // as hickory's RequestHandler is declared
    (
        &["rand"],
        &[
            "src/upstream/",
            "src/resolve/",
            "src/stub/",
            "src/telemetry.rs",
            "src/intercept/",
            "src/cluster/feed.rs",
        ],
    ),
];

/// Crates that any file may name.
const UNFENCED: &[&str] = &["arc_swap", "futures_util", "serde", "thiserror", "tokio", "tracing"];

/// Where `SystemTime::now` and the like may stand: `clock` alone reads time.
const CLOCKS: &[&str] = &["src/clock.rs"];

/// File and folder names that say nothing.
const EMPTY_NAMES: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "types", "manager", "misc"];

/// Words that have a better one, with the phrases and folders in which they are right.
const WORDS: &[(&str, &str, &[&str])] = &[
    (
        "client",
        "stub resolver",
        &[
            "client subnet",
            "client response timer",
            "prometheus_client",
            "with_no_client_auth", // rustls's
            "admin::client",
            "src/admin/",
            "src/upstream/",
            "src/cluster/api.rs", // kube's
            "src/cluster/feed.rs",
            "src/cluster/watch.rs",
        ],
    ),
    ("clients", "stub resolvers", &[]),
    ("backend", "upstream", &[]),
    ("proxy", "forward", &[]),
    ("mesh", "coalesce", &["configure_mesh"]), // plotters'
    ("dedup", "coalesce", &[".dedup()"]),
    ("graceful", "drain", &["with_graceful_shutdown"]), // axum's
];

/// The most lines of one file before its tests.
const MAX_LINES: usize = 400;

/// One source file.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
    /// The text before the tests, with comments and the insides of strings blanked.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let is_test = path.starts_with("tests/") || is_tests(path);
        let code = if is_test { String::new() } else { blank(before_tests(text)) };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The top-level module that the file belongs to; `None` outside `src` and for `lib.rs`.
    fn module(&self) -> Option<&str> {
        let path = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let module = path.split('/').next()?;
        (module != "lib").then_some(module)
    }
}

/// Tells whether a file below `src` holds tests and nothing else.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The part of a file before its test module. A lone item that is for tests only does not end it.
fn before_tests(text: &str) -> &str {
    let opens_tests = |(at, _): &(usize, &str)| {
        let mut lines = text[*at..].lines().skip_while(|line| line.starts_with("#["));
        let starts_line = *at == 0 || text[..*at].ends_with('\n');
        let opens = |line: &str| {
            let line = line.trim_start_matches("pub ");
            line.starts_with("mod ") && (line.contains('{') || line == "mod tests;")
        };
        starts_line && lines.next().is_some_and(opens)
    };
    text.match_indices("#[cfg(test)]").find(opens_tests).map_or(text, |(at, _)| &text[..at])
}

/// Blanks comments and the insides of string and character literals, newlines kept.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (skip, keep) = literal_at(rest, out.chars().next_back());
        if skip == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        out.push_str(keep);
        out.extend(rest[..skip].chars().filter(|char| *char == '\n'));
        rest = &rest[skip..];
    }
    out
}

/// How many bytes of comment or literal begin here, and what stands for them; 0 when it is code.
fn literal_at(rest: &str, before: Option<char>) -> (usize, &'static str) {
    let until = |pattern: &str, from: usize| {
        rest.get(from..).and_then(|tail| tail.find(pattern)).map_or(rest.len(), |at| from + at)
    };
    if rest.starts_with("//") {
        return (until("\n", 0), "");
    }
    if rest.starts_with("/*") {
        return ((until("*/", 2) + 2).min(rest.len()), "");
    }
    let in_word = before.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !in_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let open = rest.len() - raw.len() + hashes + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            return ((until(&close, open) + close.len()).min(rest.len()), "\"\"");
        }
    }
    match rest.as_bytes() {
        [b'"', ..] => (quoted(rest, b'"'), "\"\""),
        [b'\'', b'\\', ..] => (quoted(rest, b'\''), "' '"),
        [b'\'', ..] => {
            let mut chars = rest.chars().skip(1);
            let width = chars.next().map_or(0, char::len_utf8);
            if chars.next() == Some('\'') { (width + 2, "' '") } else { (0, "") }
        }
        _ => (0, ""),
    }
}

/// The length of a quoted literal with backslash escapes, quotes included.
fn quoted(rest: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The first path segments behind each `root::` in `code`, groups in braces included.
fn imports<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&format!("{root}::")) {
        if code[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_' || char == ':') {
            continue;
        }
        let rest = &code[at + root.len() + 2..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.push(word_at(rest)),
        }
    }
    found
}

/// The identifier at the start of `text`.
fn word_at(text: &str) -> &str {
    let end = text.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first segments of the paths in a `{a::b, c::{d, e}}` group whose brace is already open.
fn group_heads(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let mut heads = vec![word_at(group.trim_start())];
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(word_at(group[at + 1..].trim_start())),
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// Whether `from` may import `to`.
fn may_import(from: &str, to: &str) -> bool {
    let level = |module| LEVELS.iter().position(|row| row.contains(&module));
    let tool = |module| TOOLS.iter().find(|(name, _)| *name == module);
    match (level(from), tool(from), level(to), tool(to)) {
        (Some(from), _, Some(to), _) => to < from,
        (Some(_), _, None, Some(_)) => from == "cli",
        (_, Some((_, more)), Some(to_level), _) => to_level <= 1 || more.contains(&to),
        (_, Some((_, more)), None, Some(_)) => more.contains(&to),
        _ => false,
    }
}

/// Imports that go up or sideways, and modules that have no place in the tables.
fn check_levels(source: &Source) -> Vec<String> {
    let Some(from) = source.module() else { return Vec::new() };
    let root = if from == "main" { "nodens" } else { "crate" };
    let mut complaints: Vec<_> = imports(&source.code, root)
        .into_iter()
        .filter(|to| *to != from && !may_import(from, to))
        .map(|to| format!("{from} must not import {to}"))
        .collect();
    if source.code.contains("super::super") {
        complaints.push("super::super hides where an import goes; write crate::".to_owned());
    }
    if !LEVELS.concat().contains(&from) && !TOOLS.iter().any(|(name, _)| *name == from) {
        complaints.push(format!("{from} has no place in LEVELS or TOOLS"));
    }
    complaints
}

/// Foreign crates named outside their fence.
fn check_fences(source: &Source) -> Vec<String> {
    let inside = |files: &[&str]| {
        files.iter().any(|file| {
            source.path == *file || (file.ends_with('/') && source.path.starts_with(file))
        })
    };
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (crates, files) in FENCES.iter().filter(|(_, files)| !inside(files)) {
        for name in crates.iter().filter(|name| names_crate(&source.code, name)) {
            complaints.push(format!("{name} belongs to {}", files.join(", ")));
        }
    }
    let clocks = ["Instant::now", "SystemTime::now", "UNIX_EPOCH.elapsed"];
    if !inside(CLOCKS) && clocks.iter().any(|clock| source.code.contains(clock)) {
        complaints.push("clock.rs alone reads time".to_owned());
    }
    complaints
}

/// Whether `code` has a path that begins with `name`, or imports the crate whole. Error numbers of
/// libc are words, not calls: anybody may say them.
fn names_crate(code: &str, name: &str) -> bool {
    let is_errno = |path: &&str| {
        name == "libc"
            && path.starts_with('E')
            && path.chars().all(|char| char.is_ascii_uppercase())
    };
    !imports(code, name).iter().all(is_errno)
        || code.contains(&format!("use {name};"))
        || code.contains(&format!("use {name} "))
}

/// Files that are too long, too deep or named after nothing.
fn check_shape(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = if source.code.is_empty() { 0 } else { before_tests(&source.text).lines().count() };
    if lines > MAX_LINES {
        complaints.push(format!("{lines} lines before the tests; at most {MAX_LINES}"));
    }
    let parts: Vec<_> = source.path.trim_end_matches(".rs").split('/').collect();
    if source.path.starts_with("src/") && !is_tests(&source.path) && parts.len() > 3 {
        complaints.push("deeper than two levels of modules".to_owned());
    }
    for part in parts.iter().filter(|part| EMPTY_NAMES.contains(part)) {
        complaints.push(format!("\"{part}\" says nothing: name the noun that it owns"));
    }
    complaints
}

/// Files without a `//!` opening, items without a `///` headline.
fn check_headlines(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    if !source.text.starts_with("//!") {
        complaints.push("does not open with //!".to_owned());
    }
    let text = before_tests(&source.text);
    let lines: Vec<&str> = text.lines().filter(|_| !source.code.is_empty()).collect();
    let mut in_trait_impl = false;
    for (index, line) in lines.iter().enumerate() {
        if !line.starts_with([' ', '}', ')']) && !line.is_empty() {
            let opening = lines[index..].join(" ");
            let opening = opening.split('{').next().unwrap_or_default();
            in_trait_impl = line.starts_with("impl") && opening.contains(" for ");
        }
        if is_item(line)
            && !(in_trait_impl && line.starts_with(' '))
            && !has_headline(&lines[..index])
        {
            complaints.push(format!("line {}: no headline: {}", index + 1, line.trim()));
        }
    }
    complaints
}

/// Whether a line begins an item that needs a headline: functions and types up to one level of
/// indentation, constants and statics at the left margin.
fn is_item(line: &str) -> bool {
    let indent = line.len() - line.trim_start().len();
    let mut words = line.split([' ', '<', '(']).filter(|word| {
        !word.is_empty() && !word.starts_with("pub") && !["super)", "crate)"].contains(word)
    });
    let first = words.find(|word| !["async", "unsafe", "extern", "\"C\""].contains(word));
    let second = words.next();
    match first {
        Some("const") if second == Some("fn") => indent <= 4,
        Some("const") if second == Some("_:") => false,
        Some("const" | "static" | "type" | "macro_rules!") => indent == 0,
        Some("fn" | "struct" | "enum" | "trait" | "union") => indent <= 4,
        _ => false,
    }
}

/// Whether the lines above an item end in a doc comment, attributes and derives skipped; constants in
/// a row share the headline of the first.
fn has_headline(above: &[&str]) -> bool {
    let mut in_attribute = false;
    let is_const = |line: &&&str| line.trim_start_matches("pub ").starts_with("const ");
    for line in above.iter().rev().skip_while(is_const).map(|line| line.trim()) {
        in_attribute |= line.ends_with(")]") && !line.starts_with("#[");
        match line {
            _ if line.starts_with("#[") => in_attribute = false,
            _ if in_attribute => {}
            _ => return line.starts_with("///"),
        }
    }
    false
}

/// Words of the list, and `unwrap()` outside tests.
fn check_words(source: &Source) -> Vec<String> {
    let text = before_tests(&source.text).to_lowercase();
    let mut complaints = Vec::new();
    let applies = |phrases: &[&str]| {
        source.path.starts_with("src/") && !phrases.iter().any(|at| source.path.starts_with(at))
    };
    for (word, better, phrases) in WORDS.iter().filter(|(_, _, phrases)| applies(phrases)) {
        let text = phrases.iter().fold(without_strings(&text), |text, ok| text.replace(ok, ""));
        if text.split(|char: char| !char.is_alphanumeric() && char != '-').any(|part| part == *word)
        {
            complaints.push(format!("\"{word}\": say {better}"));
        }
    }
    if source.code.contains(".unwrap()") && !source.path.starts_with("src/testing/") {
        complaints.push("unwrap() outside tests".to_owned());
    }
    complaints
}

/// The text with the insides of strings blanked and comments kept.
fn without_strings(text: &str) -> String {
    text.lines().map(|line| if line.trim_start().starts_with("//") { line.to_owned() } else { blank(line) } + "\n").collect()
}

/// Paths of somebody's own machine, and numbers of somebody's own tracker.
fn check_traces(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (line, text) in source.text.lines().enumerate() {
        let folder = ["home", "root", "tmp", "work", "Users"].iter().any(|folder| {
            text.match_indices(&format!("/{folder}/")).any(|(at, found)| {
                let starts = !text[..at]
                    .ends_with(|char: char| char.is_alphanumeric() || "._-$}".contains(char));
                let tail = &text[at + found.len()..];
                let goes_on = tail.starts_with(|char: char| char.is_alphanumeric() || char == '.');
                // A file of its own in the folder for such files says nothing about anybody.
                starts
                    && goes_on
                    && (folder != &"tmp"
                        || word_at(tail).len() < tail.len()
                            && tail[word_at(tail).len()..].starts_with('/'))
            })
        });
        let tracker = text.to_lowercase().split("issue ").skip(1).any(|tail| {
            tail.trim_start_matches('#').starts_with(|char: char| char.is_ascii_digit())
        });
        if folder || tracker {
            complaints
                .push(format!("line {}: means something on one machine only: {text}", line + 1));
        }
    }
    complaints
}

/// Rows that a table of the README lacks, and rows of it that nothing stands behind.
///
/// A row of `rows` is a whole line; rows of the README are those that begin as `kind` does.
fn check_table(readme: &str, rows: &[String], kind: &str) -> Vec<String> {
    let written: Vec<&str> = readme.lines().filter(|line| line.starts_with(kind)).collect();
    let missing = rows.iter().filter(|row| !written.contains(&row.as_str()));
    let mut complaints: Vec<_> = missing.map(|row| format!("missing: {row}")).collect();
    let stale = written.iter().filter(|line| !rows.iter().any(|row| row == *line));
    complaints.extend(stale.map(|line| format!("nothing stands behind: {line}")));
    complaints
}

/// All files below `folders` of the repository whose name ends in one of `ends`.
fn files(folders: &[&str], ends: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", "corpus", "artifacts", ".git"].contains(&name) {
            open.extend(
                fs::read_dir(&path).expect("readable").map(|entry| entry.expect("entry").path()),
            );
        } else if path.is_file() && ends.iter().any(|end| name.ends_with(end)) {
            let text = fs::read_to_string(&path).expect("source files are UTF-8");
            let relative = path.strip_prefix(root).expect("below the root").to_string_lossy();
            found.push(Source::new(&relative, &text));
        }
    }
    found
}

/// Every Rust file of the repository.
fn sources() -> Vec<Source> {
    files(&["src", "tests", "benches", "fuzz"], &[".rs"])
}

/// Fails with all complaints of `check` over `sources`.
fn hold(sources: &[Source], check: impl Fn(&Source) -> Vec<String>) {
    assert!(!sources.is_empty(), "nothing to check");
    let complain = |source: &Source| {
        check(source)
            .into_iter()
            .map(|what| format!("{}: {what}\n", source.path))
            .collect::<String>()
    };
    let complaints: String = sources.iter().map(complain).collect();
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Fails unless `check` finds fault with a file of this path and text.
fn must_fail(check: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) {
    assert!(!check(&Source::new(path, text)).is_empty(), "blind to {path}: {text}");
}

/// Fails unless `check` is content with a file of this path and text.
fn must_pass(check: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) {
    assert_eq!(check(&Source::new(path, text)), Vec::<String>::new(), "{path}: {text}");
}

#[test]
fn imports_go_down_only() {
    for (path, text) in [
        ("src/cache/mod.rs", "use crate::upstream::Group;"),
        ("src/dns/name.rs", "use crate::{config::Config};"),
        ("src/resolve/mod.rs", "use crate::{dns::{Qtype, ede}, serve};"),
        ("src/resolve/mod.rs", "fn f(x: &crate::app::App) {}"),
        ("src/serve/udp.rs", "use crate::admin;"),
        ("src/app.rs", "use crate::stub;"),
        ("src/stub/mod.rs", "use crate::resolve;"),
        ("src/dns/name.rs", "use super::super::config;"),
        ("src/main.rs", "use nodens::unheard;"),
        ("src/unheard.rs", ""),
    ] {
        must_fail(check_levels, path, text);
    }
    for (path, text) in [
        ("src/cache/mod.rs", "use crate::{dns::Qtype, clock, cache::key};"),
        ("src/cache/mod.rs", "// crate::upstream\nconst A: &str = \"crate::serve\";"),
        ("src/cache/mod.rs", "#[cfg(test)]\nmod tests { use crate::serve; }"),
        ("src/cli/mod.rs", "use crate::{app, stub};"),
    ] {
        must_pass(check_levels, path, text);
    }
    hold(&sources(), check_levels);
}

#[test]
fn foreign_crates_stay_in_their_fences() {
    must_fail(check_fences, "src/serve/udp.rs", "use socket2::Socket;");
    must_fail(check_fences, "src/serve/udp.rs", "use libc;");
    must_fail(check_fences, "src/cache/entry.rs", "fn f() -> moka::sync::Cache {}");
    must_fail(check_fences, "src/resolve/mod.rs", "let now = Instant::now();");
    must_pass(check_fences, "src/serve/socket.rs", "use socket2::Socket;");
    must_pass(check_fences, "src/app.rs", "use crate::dns; // libc::c_int");
    must_pass(check_fences, "src/app.rs", "let full = libc::EMFILE;");
    must_fail(check_fences, "src/app.rs", "let full = libc::EMFILE; libc::close(1);");
    hold(&sources(), check_fences);
}

#[test]
fn every_dependency_has_a_fence_or_is_known_to_need_none() {
    let manifest = include_str!("../Cargo.toml");
    let tables = manifest.split("\n[").filter(|table| table.starts_with("dependencies]"));
    let names: Vec<String> = tables
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().replace('-', "_")))
        .collect();
    assert!(names.len() > 10, "the manifest was not read: {names:?}");
    for name in &names {
        let fenced = FENCES.iter().any(|(crates, _)| crates.contains(&name.as_str()));
        assert!(fenced || UNFENCED.contains(&name.as_str()), "{name} has no place in FENCES");
    }
    for name in FENCES.iter().flat_map(|(crates, _)| *crates).chain(UNFENCED) {
        assert!(names.iter().any(|known| known == name), "{name} is no dependency (any more)");
    }
}

#[test]
fn files_are_short_shallow_and_named_after_something() {
    must_fail(check_shape, "src/dns/name.rs", &"fn a() {}\n".repeat(MAX_LINES + 1));
    must_fail(check_shape, "src/dns/wire/name.rs", "fn a() {}");
    must_fail(check_shape, "src/dns/utils.rs", "fn a() {}");
    must_fail(check_shape, "src/common/name.rs", "fn a() {}");
    let tested = "fn a() {}\n#[cfg(test)]\nmod tests {\n".to_owned() + &"\n".repeat(MAX_LINES);
    must_pass(check_shape, "src/dns/name.rs", &tested);
    hold(&sources(), check_shape);
}

#[test]
fn every_item_has_a_headline() {
    for text in [
        "fn a() {}",
        "//! Doc.\nfn a() {}",
        "//! Doc.\nimpl A {\n    pub(super) fn a() {}\n}",
        "//! Doc.\n/// A.\nstruct A;\npub const fn b() {}",
        "//! Doc.\n/// A.\nstruct A;\n\n#[derive(Debug)]\nenum B {}",
        "//! Doc.\nconst A: u8 = 1;",
        "//! Doc.\n// Not a headline.\nasync fn a() {}",
    ] {
        must_fail(check_headlines, "src/dns/name.rs", text);
    }
    for text in [
        "//! Doc.\n/// A.\n#[derive(Debug)]\n#[serde(\n    a,\n)]\nstruct A;",
        "//! Doc.\nimpl<T> A\n    for B<T> {\n    fn a() {}\n}",
        "//! Doc.\npub mod a;\nimpl A {\n    pub const B: u8 = 1;\n}",
        "//! Doc.\n/// Places.\nconst A: u8 = 1;\nconst B: u8 = 1;",
    ] {
        must_pass(check_headlines, "src/dns/name.rs", text);
    }
    hold(&sources(), check_headlines);
}

#[test]
fn words_are_those_of_the_list() {
    must_fail(check_words, "src/dns/name.rs", "/// Tells the client.\nfn a() {}");
    must_fail(check_words, "src/dns/name.rs", "fn a(client: u8) {}");
    must_fail(check_words, "src/dns/name.rs", "fn a() { b.unwrap() }");
    must_pass(
        check_words,
        "src/dns/name.rs",
        "// The client subnet option.\nconst A: &str = \"proxy\";",
    );
    must_pass(
        check_words,
        "src/dns/name.rs",
        "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c.unwrap() } }",
    );
    hold(&sources(), check_words);
}

#[test]
fn nothing_points_at_one_machine_or_tracker() {
    must_fail(check_traces, "README.md", &format!("see {}", ["", "home", "me", "x"].join("/")));
    must_fail(check_traces, "README.md", &format!("see {} 3", "issue"));
    must_pass(check_traces, "README.md", "/etc/nodens, target/tmp/x, an issue of /tmp");
    let ends = [".rs", ".md", ".toml", ".sh", ".yml", ".yaml", "run", "nightly"];
    hold(&files(&[""], &ends), check_traces);
}

#[test]
fn the_readme_lists_every_metric() {
    let row = |(name, kind, help): &(&str, &str, &str)| format!("| `{name}` | {kind} | {help} |");
    let rows: Vec<String> = nodens::metrics::TABLE.iter().map(row).collect();
    let complaints = |readme: &str| {
        ["| `coredns_", "| `nodens_"]
            .iter()
            .flat_map(|kind| {
                let rows: Vec<String> =
                    rows.iter().filter(|row| row.starts_with(kind)).cloned().collect();
                check_table(readme, &rows, kind)
            })
            .collect::<Vec<_>>()
    };
    let readme = include_str!("../README.md");
    assert_eq!(complaints("").len(), rows.len(), "blind to a missing metric");
    let invented = format!("{readme}\n| `nodens_invented_total` | counter | Nothing. |\n");
    assert!(!complaints(&invented).is_empty(), "blind to an invented metric");
    assert_eq!(complaints(readme), Vec::<String>::new());
}

#[test]
fn the_readme_lists_every_key_with_its_default() {
    let row = |key: &nodens::config::keys::Key| {
        format!("| `{}` | {} | {} |", key.name, key.default, key.doc)
    };
    let rows: Vec<String> = nodens::config::keys::KEYS.iter().map(row).collect();
    let section = |readme: &'static str| {
        let (_, section) = readme.split_once("\n## Configuration\n").unwrap_or_default();
        section.split("\n## ").next().unwrap_or_default()
    };
    let written = section(include_str!("../README.md"));
    assert_eq!(check_table("", &rows, "| `").len(), rows.len(), "blind to a missing key");
    let stale = format!("{written}\n| `cache.colour` | blue | none |\n");
    assert!(!check_table(&stale, &rows, "| `").is_empty(), "blind to an invented key");
    assert_eq!(check_table(written, &rows, "| `"), Vec::<String>::new());
}

#[test]
fn blanking_keeps_code_and_lines() {
    for (text, code) in [
        ("a // b\nc", "a \nc"),
        ("a /* b\n */ c", "a \n c"),
        (r#"a("b // \" c") d"#, r#"a("") d"#),
        ("a(r#\"b \" c\"#) d", "a(\"\") d"),
        ("fn a<'b>(c: &'b u8) { '\"'; '\\''; }", "fn a<'b>(c: &'b u8) { ' '; ' '; }"),
        ("for r in rr {}", "for r in rr {}"),
    ] {
        assert_eq!(blank(text), code);
    }
}
