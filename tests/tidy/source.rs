//! Reads Rust source just well enough for the rules: tokens with line numbers, without comments and strings, with test
//! code marked, and the paths that a file names. It knows nothing of the rules.

use std::fs;
use std::path::Path;

/// One source file, read.
pub(crate) struct Source {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// As it stands on disk.
    pub text: String,
    /// Its code, without comments and without the contents of strings.
    pub tokens: Vec<Token>,
    /// 1-based, inclusive line ranges of `#[cfg(test)] mod … { … }`.
    pub test_modules: Vec<(usize, usize)>,
}

/// An identifier, a number, a literal (`""`), `::`, or one character of punctuation.
pub(crate) struct Token {
    pub text: String,
    pub line: usize,
    /// Whether it is compiled for tests only.
    pub test: bool,
}

/// A path that the code names, `use` groups expanded, without a leading `::`.
pub(crate) struct NamedPath {
    pub segments: Vec<String>,
    pub line: usize,
    pub test: bool,
}

impl Source {
    /// Reads `text` as the file at `path`.
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let mut tokens = Lexer::new(text).run();
        let test_modules = mark_tests(&mut tokens);
        if is_test_file(path) {
            tokens.iter_mut().for_each(|t| t.test = true);
        }
        Self { path: path.to_owned(), text: text.to_owned(), tokens, test_modules }
    }

    /// Whether the token at `at` and those after it are `expected`.
    pub(crate) fn is_at(&self, at: usize, expected: &[&str]) -> bool {
        expected.iter().enumerate().all(|(i, e)| self.token(at + i) == *e)
    }

    /// The token's text, or nothing past the end.
    pub(crate) fn token(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |t| &t.text)
    }

    /// The index of the bracket that closes the one at `open`, or the end.
    pub(crate) fn closing(&self, open: usize) -> usize {
        closing(&self.tokens, open)
    }

    /// Lines that are not in test modules.
    pub(crate) fn lines_without_tests(&self) -> usize {
        let tests: usize = self.test_modules.iter().map(|(first, last)| last + 1 - first).sum();
        self.text.lines().count() - tests
    }

    /// Every path in the code: whole `use` trees, and whatever has a `::`.
    pub(crate) fn paths(&self) -> Vec<NamedPath> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            at = match self.token(at) {
                "use" if self.token(at + 1) != "<" => self.tree(at + 1, &[], &mut found),
                "extern" if self.token(at + 1) == "crate" => self.tree(at + 2, &[], &mut found),
                _ if self.starts_path(at) => self.tree(at, &[], &mut found),
                _ => at + 1,
            };
        }
        found
    }

    /// Whether an expression's or a type's path starts here (`$crate::…` belongs to whoever calls the macro).
    fn starts_path(&self, at: usize) -> bool {
        let before = |n: usize| at.checked_sub(n).map_or("", |i| self.token(i));
        let continues = before(1) == "::" && (is_ident(before(2)) || before(2) == ">");
        is_ident(self.token(at)) && self.token(at + 1) == "::" && !continues && before(1) != "$"
    }

    /// Expands the tree at `at` below `prefix`; returns where reading goes on.
    fn tree(&self, mut at: usize, prefix: &[String], found: &mut Vec<NamedPath>) -> usize {
        let mut segments = prefix.to_vec();
        let first = at.min(self.tokens.len() - 1);
        loop {
            match self.token(at) {
                "::" => at += 1,
                "{" if at == first || self.token(at - 1) == "::" => return self.group(at, &segments, found),
                text if is_ident(text) || text == "*" => {
                    segments.push(text.to_owned());
                    at += 1;
                    if self.token(at) != "::" {
                        break;
                    }
                }
                _ => break,
            }
        }
        let token = &self.tokens[first];
        found.push(NamedPath { segments, line: token.line, test: token.test });
        at.max(first + 1)
    }

    /// Expands `{a, b::c}`; returns the index after its closing brace.
    fn group(&self, open: usize, prefix: &[String], found: &mut Vec<NamedPath>) -> usize {
        let close = self.closing(open);
        let mut at = open + 1;
        while at < close {
            at = self.tree(at, prefix, found);
            while at < close && self.token(at) != "," {
                at += 1; // `as name`
            }
            at += 1;
        }
        close + 1
    }
}

/// All Rust files below `root`, in a stable order, without what builds and fuzzers leave behind.
pub(crate) fn read_tree(repository: &Path, root: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(repository.join(root)) else { return found };
    let mut names: Vec<_> =
        entries.map(|e| e.expect("a readable entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    for name in names {
        let path = format!("{root}/{name}");
        if repository.join(&path).is_dir() {
            if !["target", "corpus", "artifacts"].contains(&name.as_str()) {
                found.extend(read_tree(repository, &path));
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(repository.join(&path)).expect("source is UTF-8");
            found.push(Source::parse(&path, &text));
        }
    }
    found
}

/// Whether the whole file is compiled for tests only.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.starts_with("tests/")
}

/// Whether this is a name (or a number, which no rule asks for).
pub(crate) fn is_ident(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len().saturating_sub(1)
}

/// Marks every item under `#[cfg(test)]` or `#[cfg(all(test, …))]`; returns the lines of the modules among them.
fn mark_tests(tokens: &mut [Token]) -> Vec<(usize, usize)> {
    let mut modules = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_attribute(tokens, at) {
            at += 1;
            continue;
        }
        let mut item = at;
        while tokens.get(item).is_some_and(|t| t.text == "#") {
            item = closing(tokens, item + 1) + 1;
        }
        let end = item_end(tokens, item);
        let is_module = tokens[item.min(end)..=end].iter().take(5).any(|t| t.text == "mod");
        if is_module && tokens[end].text == "}" {
            modules.push((tokens[at].line, tokens[end].line));
        }
        tokens[at..=end].iter_mut().for_each(|t| t.test = true);
        at = end + 1;
    }
    modules
}

fn is_test_attribute(tokens: &[Token], at: usize) -> bool {
    let starts = |words: &[&str]| {
        words.iter().enumerate().all(|(i, w)| tokens.get(at + i).is_some_and(|t| t.text == *w))
    };
    starts(&["#", "[", "cfg", "(", "test", ")"]) || starts(&["#", "[", "cfg", "(", "all", "(", "test"])
}

/// The last token of the item at `at`: its `;`, or the brace that closes its body.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at,
            "{" if tokens[at - 1].text != "::" => return closing(tokens, at),
            "(" | "[" | "{" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    tokens.len() - 1
}

/// Splits text into tokens.
struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer {
    fn new(text: &str) -> Self {
        Self { chars: text.chars().collect(), at: 0, line: 1, tokens: Vec::new() }
    }

    fn run(mut self) -> Vec<Token> {
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('/')) => self.skip_while(|c| c != '\n'),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(),
                ('\'', _) => self.quote(),
                (':', Some(':')) => self.push("::".to_owned(), 2),
                _ if c.is_whitespace() => self.advance(1),
                _ if c.is_alphanumeric() || c == '_' => self.word(),
                _ => self.push(c.to_string(), 1),
            }
        }
        self.tokens
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn advance(&mut self, n: usize) {
        for _ in 0..n {
            self.line += usize::from(self.peek(0) == Some('\n'));
            self.at += 1;
        }
    }

    fn skip_while(&mut self, keep: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&keep) {
            self.advance(1);
        }
    }

    fn push(&mut self, text: String, length: usize) {
        self.tokens.push(Token { text, line: self.line, test: false });
        self.advance(length);
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => (depth += 1, self.advance(2)).1,
                (Some('*'), Some('/')) => (depth -= 1, self.advance(2)).1,
                (None, _) => return,
                _ => self.advance(1),
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// A string with escapes.
    fn string(&mut self) {
        self.push("\"\"".to_owned(), 1);
        while let Some(c) = self.peek(0) {
            self.advance(if c == '\\' { 2 } else { 1 });
            if c == '"' {
                return;
            }
        }
    }

    /// A raw string, from its first `#` or `"`.
    fn raw_string(&mut self) {
        let hashes = self.chars[self.at..].iter().take_while(|c| **c == '#').count();
        self.push("\"\"".to_owned(), hashes + 1);
        let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        while self.at < self.chars.len() && !self.chars[self.at..].starts_with(&end) {
            self.advance(1);
        }
        self.advance(end.len());
    }

    /// A character, or a lifetime.
    fn quote(&mut self) {
        match (self.peek(1), self.peek(2)) {
            (Some('\\'), _) => {
                self.advance(3);
                self.skip_while(|c| c != '\'');
                self.advance(1);
            }
            (Some(_), Some('\'')) => self.advance(3),
            _ => {
                self.advance(1);
                self.skip_while(|c| c.is_alphanumeric() || c == '_');
            }
        }
    }

    /// A name, a number, or the prefix of a literal.
    fn word(&mut self) {
        let rest = &self.chars[self.at..];
        let length = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
        let word: String = rest[..length].iter().collect();
        let quote = rest[length..].iter().find(|c| **c != '#');
        match (word.as_str(), rest.get(length)) {
            ("r" | "br" | "cr", Some('"' | '#')) if quote == Some(&'"') => {
                self.advance(length);
                self.raw_string();
            }
            ("r", Some('#')) => self.advance(2),
            ("b" | "c", Some('"')) => self.advance(length),
            _ => self.push(word, length),
        }
    }
}
