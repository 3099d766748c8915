// The page of lmedit play: it sends acts, and puts the HTML of their answers into its places.
'use strict';
const at = (id) => document.getElementById(id);
const FACT = ['prompt', 'subject', 'target', 'true'];
let session = sessionStorage.getItem('lmedit'), job = null, texts = [], losses = [], what = '';
if (!session) {
  session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
  sessionStorage.setItem('lmedit', session);
}

function fact() {
  return Object.fromEntries(FACT.map((name) => [name, at(name).value]));
}
function fill(values) {
  for (const name of FACT) if (values && name in values) at(name).value = values[name];
}
function say(text) { at('status').textContent = text; }
function put(html) {
  const focus = document.activeElement && document.activeElement.id;
  for (const [id, text] of Object.entries(html || {})) at(id).innerHTML = text;
  if (focus && at(focus) && document.activeElement !== at(focus)) at(focus).focus();
  ready();
}
function ready() {  // of each heat map one cell can be reached by the tab key
  for (const grid of document.querySelectorAll('[role=grid]')) {
    const cell = grid.querySelector('td[data-says]');
    if (cell && !grid.querySelector('td[tabindex="0"]')) cell.tabIndex = 0;
  }
}
function busy(on) {
  at('stop').hidden = at('progress').hidden = !on;
  document.body.setAttribute('aria-busy', on);
  for (const each of document.querySelectorAll('main button, main input[type=checkbox], #patch')) each.disabled = on;
  if (!on) at('progress').removeAttribute('value');
}

function show(step, html) {
  const count = step.total === 1 ? '' : ` ${step.done}${step.total ? ` of ${step.total}` : ''}`;
  const last = step.losses.at(-1);
  const loss = last === undefined ? '' : `, loss ${last.toFixed(3)}`;
  say(`${step.work}${count}${loss}`);
  if (step.total > 1) { at('progress').max = step.total; at('progress').value = step.done; }
  if (last !== undefined && what === 'edit') {
    losses.push(...step.losses);
    const most = Math.max(...losses), end = Math.max(1, losses.length - 1), every = Math.ceil(losses.length / 400);
    const points = losses.map((y, i) => `${200 * i / end},${39 - 38 * y / (most || 1)}`).filter((_, i) => i % every === 0);
    at('loss').firstElementChild.setAttribute('points', points.join(' '));
    at('loss-said').textContent = `loss ${losses[0].toFixed(3)} \u2192 ${last.toFixed(3)} in ${losses.length} steps`;
    at('loss').removeAttribute('hidden');
  }
  put(html);
}

async function run(path, body, name) {
  what = name;
  const focus = document.activeElement;
  at('error').textContent = at('notes').textContent = '';
  if (what === 'edit') { losses = []; at('loss').setAttribute('hidden', ''); at('loss-said').textContent = ''; }
  busy(true);
  say(`${what}\u2026`);
  const began = performance.now();
  let done = null;
  try {
    const answer = await fetch(path, { method: 'POST', body, headers: { 'X-Lmedit-Session': session } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ''; ;) {
      const { value, done: end } = await reader.read();
      if (end) break;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      if (!answer.ok) { lines.push(rest); rest = ''; }
      for (const line of lines.filter(Boolean)) done = hear(JSON.parse(line)) || done;
    }
    if (!done) throw new Error('the server ended');
  } catch (error) {
    at('error').textContent = `no answer from the server (${error.message}); is lmedit play running?`;
    say('ready');
  }
  job = null;
  busy(false);
  if (focus && document.contains(focus)) focus.focus();
  if (done && done.ok) say(`${done.say || `${what}: done`} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
  return done && done.ok ? done : null;
}
function hear(event) {
  if (event.job) { job = event.job; if (event.before) say(`${what}: ${event.before} other job(s) first`); return null; }
  if ('alive' in event) { say(`${at('status').value.replace(/ \(\d+ s\)$/, '')} (${event.alive} s)`); return null; }
  if (event.step) { show(event.step, event.html); return null; }
  if (event.note) { const li = document.createElement('li'); li.textContent = event.note; at('notes').append(li); return null; }
  if (event.error) { at('error').textContent = `Error: ${event.error}`; say('ready'); return { ok: false }; }
  if ('stopped' in event) {
    say(event.stopped ? 'stopped; the model is as it was, bit for bit' : 'stopped');
    if (!event.stopped) at('error').textContent = 'Error: the weights changed; start lmedit play again';
    return { ok: false };
  }
  put(event.done.html);
  if (event.done.fact) fill(event.done.fact);
  if (event.done.refused) at('error').textContent = `Error: ${event.done.refused}`;
  return { ok: true, ...event.done };
}
const act = (name, values, what) => run(`act/${name}`, JSON.stringify(values), what || name);

function ahead() {  // so the server computes what an edit needs, while nobody waits
  const body = JSON.stringify({ ...fact(), method: at('method').value });
  fetch('ahead', { method: 'POST', body, headers: { 'X-Lmedit-Session': session } }).catch(() => {});
}

function typed() {
  const fields = [...at('options').querySelectorAll('[name]')];
  return Object.fromEntries(fields.map((each) => [each.name, each.value]));
}
const showOptions = () => act('options', { method: at('method').value }, 'options');

function on(id, event, doing) {
  at(id).addEventListener(event, (e) => { e.preventDefault(); doing(e); });
}
at('example').addEventListener('change', (e) => {
  if (e.target.value) { fill(JSON.parse(e.target.value)); act('fact', fact(), 'tokens'); }
});
at('fact-form').addEventListener('change', ahead);
at('fact-form').addEventListener('input', (e) => { if (e.target !== at('example')) at('example').value = ''; });
on('fact-form', 'submit', () => act('fact', fact(), 'tokens'));
at('method').addEventListener('change', () => { showOptions(); ahead(); });
on('edit-form', 'submit', () => act('edit', { ...fact(), method: at('method').value, options: typed(), force: at('force').checked }, 'edit'));
on('trace', 'click', () => act('where', { ...fact() }, 'trace'));
on('text-form', 'submit', async () => {
  const before = texts;
  if (at('text').value.trim()) texts = [...texts.filter((t) => t !== at('text').value), at('text').value].slice(-4);
  const given = { ...(at('prompt').value && at('target').value ? fact() : {}), texts };
  if (!await act('look', given, 'both models')) texts = before;
});
on('verify', 'click', () => act('verify', {}, 'verify'));
on('compare-form', 'submit', () => {
  const methods = [...document.querySelectorAll('[name=compared]:checked')].map((each) => each.value);
  act('compare', { ...fact(), methods }, 'compare');
});
on('take-form', 'submit', async () => {
  at('file').hidden = true;
  const done = await act('take', { form: at('form').value, rank: at('rank').value }, 'file');
  if (!done) return;
  Object.assign(at('file'), { href: done.file, textContent: `Save ${done.name}`, hidden: false, download: done.name });
});
at('patch').addEventListener('change', async () => {
  const [file] = at('patch').files;
  if (file) await run(`bring/${encodeURIComponent(file.name)}`, file, 'patch');
  at('patch').value = '';
});
at('stack').addEventListener('change', async (e) => {
  const { target } = e, on = target.checked;
  if (target.dataset.switch && !await act('switch', { edit: target.dataset.switch, on }, 'switch')) target.checked = !on;
});
at('stack').addEventListener('click', (e) => {
  const button = e.target.closest('[data-remove]');
  if (button) act('remove', { edit: button.dataset.remove }, 'remove');
});
on('stop', 'click', () => {
  if (job) fetch(`stop/${job}`, { method: 'POST', headers: { 'X-Lmedit-Session': session } });
});
function read(cell) {
  for (const each of cell.closest('table').querySelectorAll('td[tabindex="0"]')) each.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
  at('cell').textContent = cell.dataset.says;
}
at('heat').addEventListener('click', (e) => { if (e.target.dataset.says) read(e.target); });
at('heat').addEventListener('keydown', (e) => {
  const cell = e.target, way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
  if (!way || !cell.dataset.says) return;
  e.preventDefault();
  const row = cell.closest('table').rows[cell.parentElement.rowIndex + way[0]];
  const next = row && row.cells[cell.cellIndex + way[1]];
  if (next && next.dataset.says) read(next);
});

(async () => {
  const found = await act('state', {}, 'page');
  if (found) texts = found.texts;
  if (at('method').value) await showOptions();
  say('ready');
  ahead();
  document.body.dataset.ready = 'yes';
})();
