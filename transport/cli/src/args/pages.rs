//! The pages of the project name commands and files: each command is one that this program takes,
//! and each file is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Parser, error::ErrorKind};

use super::Arguments;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All pages, by their path from the root.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && name != "data" {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                pages.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    pages
}

/// The commands in code, with lines that go on behind a backslash joined: all that begins with the
/// name of the program, alone or behind a prompt or a pipe. And whether it is a whole one, in a block.
fn commands(text: &str) -> Vec<(String, bool)> {
    let text = text.replace("\\\n", " ");
    let mut found = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        let is_block = number % 2 == 1;
        let code: Vec<&str> = match is_block {
            true => part.lines().map(|line| line.split_once("# ").map_or(line, behind)).collect(),
            false => part.split('`').skip(1).step_by(2).collect(),
        };
        for line in code {
            let line = without_substitutions(line.strip_prefix("$ ").unwrap_or(line));
            let parts = line.split(" | ").flat_map(|part| part.split("; "));
            let parts = parts.map(|part| part.split(" 2>").next().unwrap_or_default().trim());
            let ours = parts.filter(|part| part.starts_with("driftline "));
            found.extend(ours.map(|part| (part.to_owned(), is_block)));
        }
    }
    found
}

/// What stands behind a prompt, or before a comment.
fn behind<'a>((before, after): (&'a str, &'a str)) -> &'a str {
    if before.contains(' ') { before } else { after.split("  # ").next().unwrap_or(after) }
}

/// One word for each `"$(command)"`.
fn without_substitutions(line: &str) -> String {
    let mut line = line.to_owned();
    while let Some((before, rest)) = line.split_once("\"$(") {
        let after = rest.split_once(")\"").map_or("", |(_, after)| after);
        line = format!("{before}WORD{after}");
    }
    line
}

#[test]
fn every_command_in_the_pages_is_one() {
    let (mut count, mut wrong) = (0, Vec::new());
    for (path, text) in pages() {
        for (command, is_whole) in commands(&text) {
            let words = command.split_whitespace().map(|word| word.trim_matches('\''));
            count += 1;
            match Arguments::try_parse_from(words) {
                // A verb that is named, with an option of it.
                Err(error)
                    if !is_whole
                        && matches!(
                            error.kind(),
                            ErrorKind::MissingRequiredArgument
                                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        ) => {}
                Err(error) => wrong.push(format!("{}: {command}: {error}", path.display())),
                Ok(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 80, "only {count} commands were found");
}

#[test]
fn every_file_that_a_page_links_is_there() {
    let mut count = 0;
    for (path, text) in pages() {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (target, _) in targets {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            if file.contains("://") {
                continue;
            }
            let linked = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(linked.exists(), "{} links {target}", path.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&linked).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(anchor);
                assert!(anchors.any(|one| one == heading), "{} links {target}", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 20, "only {count} links were found");
}

/// How a heading is linked.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn commands_are_found_where_pages_have_them() {
    let page = "Say `driftline push a b`, or `push --full`.\n```sh\ntarget# driftline serve --check\n\
                x | driftline map -   # a comment\ndriftline push a \\\n    b\n```\n";
    let found: Vec<String> = commands(page).into_iter().map(|(command, _)| command).collect();
    assert_eq!(
        found,
        [
            "driftline push a b",
            "driftline serve --check",
            "driftline map -",
            "driftline push a      b"
        ]
    );
}
