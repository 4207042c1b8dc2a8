"""What surrounds an exported lesson: style for light and dark pages, and the few lines that move its sliders."""

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 17px/1.55 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
nav { font-size: .85em; opacity: .8; }
code, pre { font: .9em ui-monospace, Menlo, Consolas, monospace; }
pre { padding: .7rem 1rem; border-radius: 6px; background: #8881; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.exercise { border-left: 4px solid #3a9a4a; }
.paragraph { display: block; margin: .8em 0; }
.control { display: block; margin-top: 1rem; } .control .paragraph { display: inline; }
input { vertical-align: middle; }
details { margin: .5rem 0; padding: .3rem .8rem; border: 1px solid #8884; border-radius: 6px; }
summary { cursor: pointer; }
.done { border-left: 4px solid #3a9a4a; padding-left: 1rem; }
figure { vertical-align: top; } table { border-collapse: collapse; } td, th { padding: 2px 8px; text-align: left; }
section > div { overflow-x: auto; }
"""

SCRIPT = """
for (const slider of document.querySelectorAll("input[data-moves]")) {
  slider.addEventListener("input", () => {
    const values = slider.parentNode.querySelectorAll("data");
    slider.parentNode.querySelector("output").textContent = values[slider.value].textContent;
    for (const section of document.querySelectorAll("section")) {
      const frames = section.querySelectorAll(`[data-of="${slider.dataset.moves}"]`);
      if (!frames.length) continue;
      for (const other of section.querySelectorAll(".base, [data-of]")) other.hidden = true;
      frames[slider.value].hidden = false;
    }
  });
}
"""

PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>{STYLE}</style>
<nav><a href="index.html">All lessons</a>. This page is to read and to try the sliders; in the lesson itself your own
code is run and checked: <code>pip install "tinykron[lessons]"</code>, then <code>tinykron lesson</code>.</nav>
BODY
<script>{SCRIPT}</script>
</html>
"""

INDEX = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>tinykron: lessons</title>
<style>{STYLE}</style>
<h1>tinykron: lessons</h1>
<p>From a number that remembers where it came from to transformers made of small factors: one idea at a time. These
pages are for reading, and need nothing. To have your own code run and checked, on CPU or GPU:</p>
<pre>pip install "tinykron[lessons]"
tinykron lesson</pre>
<ol>
LESSONS
</ol>
</html>
"""
