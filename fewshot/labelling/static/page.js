// The page: shows what the server says, and tells it what was clicked or typed. All addresses are relative: the secret
// is in the page's own. The order of images is the server's; this file decides only what of it is in view.

const PREVIEW = 40; // images of a list that the server sends unasked
const BLOCK = 200; // images that are fetched at a time of a list in full
const HOLD = 1000; // ms that a clicked list stays as it is after the pointer moved in it: no image goes from under it
const POLL = 2000; // ms between two looks for what other windows have changed
const SIDES = [72, 96, 112, 144, 192, 256]; // of thumbnails

const at = (id) => document.getElementById(id);
const page = {
  state: null, // the server's last answer
  active: null, // the class that a click gives
  selected: new Set(), // indices of images
  open: null, // the list that is shown in full, or null
  full: new Map(), // of that list: block -> items
  hold: null, // {key, items, given}: a list that stays, and the classes given meanwhile
  side: 2,
  cursor: { key: null, place: 0 }, // of the keyboard
  large: null, // the image shown large
  sorted: -1000, // when a list was sorted under the pointer, ms
};
const pictures = new Map();
let queue = Promise.resolve(); // what is sent, one after another

// -------------------------------------------------------------------------------------------------------- the server

async function ask(address, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Give its command again in the terminal; nothing is lost.");
  }
  if (answer.status === 204) return null;
  const text = await answer.text();
  let found = null;
  try { found = JSON.parse(text); } catch { /* not JSON: said below */ }
  if (answer.ok) return found;
  const error = new Error(found?.error ?? (text || `The server answered ${answer.status}.`));
  error.isRefused = answer.status < 500;
  error.isStale = answer.status === 409;
  throw error;
}

function send(event, done) {
  queue = queue.then(async () => {
    const before = performance.now();
    try {
      const state = await ask("act", { catalogue: page.state.catalogue, base: page.state.version, event, items: PREVIEW });
      notice("");
      show(state);
      page.milliseconds = performance.now() - before;
      done?.();
    } catch (error) {
      releaseHold();
      notice(error.message);
      if (error.isStale) await refresh(true);
      else if (page.state) show(page.state);
    }
  });
  return queue;
}

async function refresh(isForced = false) {
  const known = isForced || !page.state ? "" : `${page.state.catalogue}-${page.state.order}`;
  const state = await ask(`state?order=${known}&items=${PREVIEW}`);
  if (state === null) return;
  if (page.state && state.catalogue !== page.state.catalogue) { // the server found other images
    page.selected.clear();
    page.open = null;
  }
  show(state);
}

async function poll() {
  if (!document.hidden) {
    try {
      const wasSilent = page.isSilent;
      await queue;
      await refresh(wasSilent);
      page.isSilent = false;
      if (wasSilent) notice("");
    } catch (error) {
      page.isSilent = true;
      notice(error.message);
    }
  }
  setTimeout(poll, POLL);
}

// ------------------------------------------------------------------------------------------------- what is to be shown

const classes = () => page.state.classes;
const classOf = (id) => classes().find((one) => one.id === id);
const keyOf = (place) => (place < 9 ? String(place + 1) : place === 9 ? "0" : "");
const colour = (id) => `hsl(${(id * 137.5) % 360} 62% 52%)`;
const say = (text) => { at("status").textContent = text; };

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function show(state) {
  if (page.isDown) { // a tile that is replaced between press and release would lose its click
    page.waiting = state;
    page.state = { ...page.state, version: state.version, order: state.order };
    return;
  }
  const isFirst = page.state === null;
  page.state = state;
  if (page.active !== null && !classOf(page.active)) page.active = null;
  if (page.open && !(page.open in state.lists)) page.open = null;
  page.full.clear();
  showTop();
  showMain();
  showActions();
  if (page.large !== null) showLargeText();
  if (isFirst && !state.classes.length) say("Press n to name the first class.");
}

function showTop() {
  const { state } = page;
  document.title = `${state.by_hand} of ${state.total} – ${state.folder}`;
  at("folder").textContent = state.folder;
  const gone = state.gone ? `, ${state.gone.toLocaleString()} gone` : "";
  at("progress").textContent = `${state.total.toLocaleString()} images, ${state.by_hand.toLocaleString()} by hand${gone}`;
  at("method").replaceChildren(...state.methods.map((name) => make("option", { value: name, textContent: name, selected: name === state.method })));
  at("undo").disabled = state.undo === null;
  at("undo").title = state.undo === null ? "Nothing to undo" : `Undo: ${state.undo} (u)`;
  const isFirst = !classes().length;
  at("classes").replaceChildren(
    make("button", { type: "button", id: "new", textContent: isFirst ? "+ New class" : "+ New", title: "New class (n)", onclick: () => askName(null), className: isFirst ? "primary" : "" }),
    ...classes().map((one, place) => chip(one, place, () => useClass(one.id))));
  if (state.problem) notice(state.problem);
  document.body.classList.toggle("brush", page.active !== null && page.selected.size === 0);
  document.body.classList.toggle("held", page.hold !== null);
}

function chip(one, place, onclick) {
  const element = make("button", { type: "button", className: "chip", onclick });
  element.style.setProperty("--class", colour(one.id));
  element.setAttribute("aria-pressed", String(page.active === one.id));
  element.dataset.class = one.id;
  if (keyOf(place)) element.append(make("kbd", { textContent: keyOf(place) }));
  element.append(make("span", { className: "name", textContent: one.name }),
    make("span", { className: "count", textContent: `${one.examples.toLocaleString()} + ${one.predicted.toLocaleString()}`, title: `${one.examples} by hand, ${one.predicted} predicted` }));
  return element;
}

function showMain() {
  const focus = document.activeElement?.closest?.(".tile");
  const main = at("main");
  if (page.open) main.replaceChildren(fullList(page.open));
  else main.replaceChildren(...overview());
  if (focus && !document.querySelector("dialog[open]")) focusTile(page.cursor.key, page.cursor.place, false);
  if (page.open) fill();
}

function overview() {
  const { state } = page;
  const sections = [];
  const num = state.classes.filter((one) => one.examples).length;
  if (!state.classes.length) sections.push(make("p", { className: "empty", textContent: "Name a class first: n, or the button above. Then click a few images of it." }));
  else if (num === 0) sections.push(make("p", { className: "empty", textContent: "Now click a few images of this class; then name a second one." }));
  else if (num === 1) sections.push(make("p", { className: "empty", textContent: "Give examples of a second class, and everything is sorted." }));
  if (num > 1) sections.push(...(state.lists.uncertain.total ? [section("uncertain", "Ask next", "the least certain first: Enter confirms, another class corrects")] : []));
  else if (state.lists.uncertain.total) sections.push(section("uncertain", "Of many kinds", "unlike each other, to find classes"));
  if (state.lists.unsorted.total) sections.push(section("unsorted", "Not sorted yet", num ? `${count(state.lists.unsorted.total)}, most like your examples first` : ""));
  for (const one of state.classes) sections.push(classSection(one));
  return sections;
}

function section(key, title, text) {
  const list = listOf(key);
  const element = make("section", { className: key === "uncertain" ? "ask" : "" });
  element.setAttribute("aria-label", title);
  const head = make("div", { className: "head" }, make("h2", { textContent: title }), make("span", { className: "quiet", textContent: text || count(list.total) }), make("span", { className: "grow" }));
  element.append(head, tiles(key, list.items, 0, true));
  head.append(openButton(key, list));
  return element;
}

const count = (number) => `${number.toLocaleString()} image${number === 1 ? "" : "s"}`;

function openButton(key, list) {
  return make("button", { type: "button", className: "plain", textContent: `All ${list.total.toLocaleString()}`, title: "All of this row (o)", onclick: () => openList(key) });
}

function classSection(one) {
  const predicted = `predicted-${one.id}`, examples = `examples-${one.id}`;
  const element = make("section", { className: "class" });
  element.dataset.class = one.id;
  element.style.setProperty("--class", colour(one.id));
  element.setAttribute("aria-label", one.name);
  const head = make("div", { className: "head" }, make("h2", { textContent: one.name }),
    make("span", { className: "quiet", textContent: `${one.examples.toLocaleString()} by hand, ${one.predicted.toLocaleString()} predicted` }),
    make("span", { className: "grow" }),
    make("button", { type: "button", className: "plain", textContent: "Rename", onclick: () => askName(one) }),
    make("button", { type: "button", className: "plain", textContent: "Remove", onclick: () => askRemove(one) }));
  element.append(head);
  if (one.examples) {
    const list = listOf(examples);
    element.append(tiles(examples, list.items, 0, true, "strip"));
    head.append(make("button", { type: "button", className: "plain", textContent: `By hand ${one.examples.toLocaleString()}`, onclick: () => openList(examples) }));
  }
  const list = listOf(predicted);
  if (list.total) {
    element.append(tiles(predicted, list.items, 0, true));
    head.append(openButton(predicted, list));
  } else if (!one.examples) element.append(make("p", { className: "empty", textContent: "No example yet." }));
  return element;
}

function listOf(key) {
  const list = page.state.lists[key];
  return page.hold?.key === key ? { ...list, items: page.hold.items } : list;
}

function tiles(key, items, start, isPreview, more = "") {
  const element = make("div", { className: `tiles ${isPreview ? "rows" : ""} ${more}` });
  element.setAttribute("role", "group");
  element.dataset.list = key;
  element.append(...items.map((item, place) => tile(key, item, start + place)));
  return element;
}

function tile(key, [index, of, probability, byHand], place) {
  const given = page.hold?.given.get(index);
  if (given !== undefined) [of, probability, byHand] = [given, 1, given !== null];
  const element = make("button", { type: "button", className: `tile ${byHand ? "hand" : ""}`, tabIndex: -1 });
  Object.assign(element.dataset, { index, place, list: key });
  const one = of === null ? null : classOf(of);
  if (one) element.style.setProperty("--class", colour(one.id));
  element.setAttribute("aria-pressed", String(page.selected.has(index)));
  const picture = pictureOf(`${key}/${index}`, `small/${page.state.catalogue}/${index}`);
  if (picture.isGone) element.classList.add("gone");
  const text = make("span", { className: "text" });
  if (one && byHand) text.append(make("b", { textContent: one.name }));
  else if (one && key === "uncertain") text.append(make("b", { textContent: one.name }), `${Math.round(100 * probability)} %`);
  else if (one) text.append(`${Math.round(100 * probability)} %`);
  element.setAttribute("aria-label", `image ${index + 1}${one ? `, ${one.name}, ${byHand ? "by hand" : `${Math.round(100 * probability)} %`}` : ""}`);
  if (page.cursor.key === key && page.cursor.place === place) element.tabIndex = 0;
  element.append(picture, text);
  return element;
}

// The same element again, so that no picture flickers when everything is sorted.
function pictureOf(name, source) {
  let picture = pictures.get(name);
  if (picture === undefined || picture.source !== source || picture.isGone) {
    picture = make("img", { alt: "", decoding: "async", draggable: false, source, src: source });
    picture.onerror = () => { picture.isGone = true; picture.closest(".tile")?.classList.add("gone"); };
  }
  pictures.delete(name);
  pictures.set(name, picture); // the latest last
  if (pictures.size > 4000) pictures.delete(pictures.keys().next().value);
  return picture;
}

// --------------------------------------------------------------------------------------- a list in full, however long

function openList(key) {
  page.open = key;
  page.full.clear();
  page.cursor = { key, place: 0 };
  showMain();
  scrollTo(0, 0);
  focusTile(key, 0, false);
}

function closeList() {
  const key = page.open;
  page.open = null;
  showMain();
  focusTile(key, 0);
}

function fullList(key) {
  const list = page.state.lists[key];
  const [kind, id] = key.split("-");
  const name = id ? classOf(Number(id)).name : kind === "uncertain" ? (page.state.lists.unsorted.total ? "Of many kinds" : "Ask next") : "Not sorted yet";
  const element = make("section", {});
  if (id) element.style.setProperty("--class", colour(Number(id)));
  const head = make("div", { className: "head" }, make("button", { type: "button", textContent: "← Back", title: "Back (o, Esc)", onclick: closeList }),
    make("h2", { textContent: name }), make("span", { className: "quiet", textContent: `${count(list.total)}${kind === "examples" ? ", by hand" : kind === "predicted" ? ", predicted, most certain first" : ""}` }));
  element.append(head, tiles(key, [], 0, false));
  page.full.set(0, list.items);
  return element;
}

// Only the rows in view are in the document; padding stands for the others.
function fill() {
  const box = document.querySelector(`.tiles[data-list="${page.open}"]`);
  if (!page.open || !box) return;
  const key = page.open, { total } = page.state.lists[key];
  const side = SIDES[page.side], width = box.clientWidth;
  const columns = Math.max(2, Math.floor((width + 6) / (Math.min(side, 0.45 * width) + 6)));
  box.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  const height = (width - 6 * (columns - 1)) / columns + 6; // of a row, with the gap
  const top = box.getBoundingClientRect().top + scrollY;
  const first = Math.max(0, Math.floor((scrollY - top) / height) - 3);
  const last = Math.min(Math.ceil(total / columns), Math.ceil((scrollY + innerHeight - top) / height) + 3);
  const start = Math.min(first * columns, Math.max(0, total - 1)), end = Math.min(last * columns, total);
  box.style.paddingTop = `${first * height}px`;
  box.style.paddingBottom = `${Math.max(0, Math.ceil(total / columns) - last) * height}px`;
  const items = [];
  for (let place = start; place < end; place++) items.push(itemAt(place));
  const isWhole = items.every(Boolean);
  const hadFocus = document.activeElement?.closest?.(".tile")?.dataset.list === key;
  box.replaceChildren(...items.map((item, i) => (item ? tile(key, item, start + i) : make("span", { className: "tile" }))));
  for (const empty of box.querySelectorAll("span.tile")) empty.style.minHeight = `${height - 6}px`;
  if (hadFocus) tileAt(key, page.cursor.place)?.focus({ preventScroll: true });
  if (!isWhole) fetchBlocks(key, start, end);
}

function itemAt(place) {
  const block = page.full.get(Math.floor(place / BLOCK));
  return Array.isArray(block) ? block[place % BLOCK] : undefined;
}

async function fetchBlocks(key, start, end) {
  const { order } = page.state;
  for (let block = Math.floor(start / BLOCK); block <= Math.floor((end - 1) / BLOCK); block++) {
    const found = page.full.get(block), wanted = Math.min(BLOCK, page.state.lists[key].total - block * BLOCK);
    if (found === "asked" || found?.length >= wanted) continue;
    const before = found;
    if (!before) page.full.set(block, "asked");
    try {
      const list = await ask(`list?list=${key}&start=${block * BLOCK}&count=${BLOCK}`);
      if (page.open !== key || page.state.order !== order) return;
      page.full.set(block, list.items);
      if (list.order !== order) await refresh(true);
    } catch (error) {
      page.full.delete(block);
      notice(error.message);
      return;
    }
    fill();
  }
}

// ------------------------------------------------------------------------------------------------ labels and selection

function give(indices, id, key) {
  if (!indices.length) return;
  const labels = Object.fromEntries(indices.map((index) => [index, id]));
  if (key) holdList(key, indices.map((index) => [index, id]));
  page.selected.clear();
  const name = id === null ? "no class" : classOf(id).name;
  return send({ kind: "label", labels }, () => say(`${count(indices.length)}: ${name}`));
}

function confirm(indices) {
  const labels = {};
  for (const index of indices) {
    const of = predictedClass(index);
    if (of !== null) labels[index] = of;
  }
  if (!Object.keys(labels).length) return;
  page.selected.clear();
  send({ kind: "label", labels }, () => say(`${count(Object.keys(labels).length)} confirmed`));
}

function predictedClass(index) {
  for (const list of [...Object.values(page.state.lists), ...[...page.full.values()].filter(Array.isArray).map((items) => ({ items }))])
    for (const item of list.items) if (item[0] === index) return item[1];
  return null;
}

// The list that was clicked stays as it is until the pointer leaves it or rests; the others are sorted at once.
function holdList(key, given) {
  if (page.open === key) return; // in full, the list is long, and what is clicked leaves it
  const items = listOf(key).items;
  page.hold = { key, items, given: new Map([...(page.hold?.key === key ? page.hold.given : []), ...given]) };
  keepHold();
}

function keepHold() {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => { releaseHold(); page.sorted = performance.now(); show(page.waiting ?? page.state); }, HOLD);
}

function releaseHold() {
  page.hold = null;
  clearTimeout(page.timer);
}

function useClass(id) {
  if (page.selected.size) {
    give([...page.selected], id);
    return;
  }
  page.active = page.active === id ? null : id;
  say(page.active === null ? "No active class: a click selects." : `Each click makes an example of ${classOf(id).name}.`);
  showTop();
}

function clickTile(element, event) {
  const index = Number(element.dataset.index), key = element.dataset.list, place = Number(element.dataset.place);
  if (performance.now() - page.sorted < 250) return; // it was meant for what was there before
  if (event.shiftKey && page.cursor.key === key) {
    const [from, to] = [page.cursor.place, place].sort((a, b) => a - b);
    for (const other of document.querySelectorAll(`button.tile[data-list="${key}"]`))
      if (Number(other.dataset.place) >= from && Number(other.dataset.place) <= to) page.selected.add(Number(other.dataset.index));
  } else if (page.active === null || page.selected.size || event.ctrlKey || event.metaKey) {
    toggle(index);
  } else {
    page.cursor = { key, place };
    const isBack = page.hold?.given.get(index) === page.active || key === `examples-${page.active}`;
    give([index], isBack ? null : page.active, key);
    return;
  }
  page.cursor = { key, place };
  showSelection();
}

function toggle(index) {
  if (!page.selected.delete(index)) page.selected.add(index);
}

function showSelection() {
  for (const element of document.querySelectorAll("button.tile")) element.setAttribute("aria-pressed", String(page.selected.has(Number(element.dataset.index))));
  showActions();
  document.body.classList.toggle("brush", page.active !== null && page.selected.size === 0);
}

function showActions() {
  const chosen = [...page.selected], bar = at("actions");
  bar.hidden = chosen.length === 0;
  if (bar.hidden) return;
  const button = (text, title, onclick) => make("button", { type: "button", textContent: text, title, onclick });
  bar.replaceChildren(make("b", { textContent: `${chosen.length.toLocaleString()} selected:` }),
    make("div", { className: "chips" }, ...classes().map((one, place) => chip(one, place, () => give([...page.selected], one.id)))),
    button("+ New class", "New class (n)", () => askName(null)),
    make("span", { className: "grow" }),
    button("Confirm", "As shown (Enter)", () => confirm([...page.selected])),
    button("No label", "Take the label back (Backspace)", () => give([...page.selected], null)),
    ...(chosen.length === 1 ? [button("Large", "Large image (Space)", () => openLarge(chosen[0]))] : []),
    button("Select none", "Esc", () => { page.selected.clear(); showSelection(); }));
  for (const element of bar.querySelectorAll(".chip")) element.removeAttribute("aria-pressed");
}

// ----------------------------------------------------------------------------------------------------------- dialogs

function openDialog(id) {
  const dialog = at(id);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

function askName(one) {
  const dialog = openDialog("new-dialog"), input = at("new-name");
  at("new-title").textContent = one ? `Rename ${one.name}` : page.selected.size ? `New class of the ${count(page.selected.size)}` : "New class";
  at("new-error").textContent = "";
  input.value = one ? one.name : "";
  input.select();
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    const name = input.value, body = one ? { kind: "rename", class: one.id, name } : { kind: "new", name };
    const before = new Set(classes().map((other) => other.id));
    try {
      await queue;
      show(await ask("act", { catalogue: page.state.catalogue, base: page.state.version, event: body, items: PREVIEW }));
    } catch (error) {
      at("new-error").textContent = error.message;
      return;
    }
    dialog.close();
    const made = classes().find((other) => !before.has(other.id));
    if (!made) return;
    if (page.selected.size) give([...page.selected], made.id);
    else { page.active = made.id; showTop(); say(`Each click makes an example of ${made.name}.`); }
    at("classes").querySelector(`[data-class="${made.id}"]`)?.scrollIntoView({ inline: "nearest", block: "nearest" });
    restoreFocus();
  };
}

function askRemove(one) {
  at("remove-text").textContent = `${one.name} has ${count(one.examples)} by hand; they become images without a label. Undo brings all back.`;
  openDialog("remove-dialog").querySelector("form").onsubmit = () => { send({ kind: "remove", class: one.id }); };
}

function askClass(indices) {
  const dialog = openDialog("pick-dialog"), input = at("pick-name");
  const list = () => {
    const wanted = input.value.trim().toLowerCase();
    const found = classes().filter((one) => one.name.toLowerCase().includes(wanted));
    found.sort((a, b) => b.name.toLowerCase().startsWith(wanted) - a.name.toLowerCase().startsWith(wanted));
    at("pick-list").replaceChildren(...found.map((one) => make("li", {}, make("button", { type: "button", textContent: one.name, onclick: () => choose(one) }))));
    return found;
  };
  const choose = (one) => { dialog.close(); give(indices, one.id); };
  input.value = "";
  input.oninput = list;
  list();
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    const [one] = list();
    if (one) choose(one);
  };
}

function openLarge(index) {
  page.large = index;
  at("large-image").src = `large/${page.state.catalogue}/${index}`;
  openDialog("large-dialog");
  showLargeText();
  ask(`names/${page.state.catalogue}/${index}`).then((names) => { if (page.large === index) at("large-names").textContent = names.join(", "); }, (error) => notice(error.message));
}

function showLargeText() {
  const index = page.large, all = [...Object.values(page.state.lists), ...[...page.full.values()].filter(Array.isArray).map((items) => ({ items }))];
  const item = all.flatMap((list) => list.items).find((one) => one[0] === index);
  const one = item && item[1] !== null ? classOf(item[1]) : null;
  at("large-label").textContent = one ? `${one.name}, ${item[3] ? "by hand" : `${Math.round(100 * item[2])} %`}` : "";
  at("large-classes").replaceChildren(...classes().map((other, place) => chip(other, place, () => give([index], other.id))));
  for (const element of at("large-classes").children) element.setAttribute("aria-pressed", String(Number(element.dataset.class) === one?.id && item[3]));
}

function stepLarge(by) {
  const list = page.open ? null : page.state.lists[page.cursor.key]?.items;
  const place = page.cursor.place + by, item = list ? list[place] : itemAt(place);
  if (!item) return;
  page.cursor.place = place;
  openLarge(item[0]);
}

function openExport() {
  const { state } = page;
  at("export-summary").textContent = `${state.by_hand.toLocaleString()} images by hand, ${(state.total - state.by_hand - state.lists.unsorted.total - state.gone).toLocaleString()} predicted, ${state.lists.unsorted.total.toLocaleString()} without a class.`;
  at("export-result").textContent = "";
  openDialog("export-dialog");
}

async function exportAs(button) {
  at("export-result").textContent = "writing ...";
  button.disabled = true;
  try {
    const found = await ask("export", { catalogue: page.state.catalogue, kind: button.dataset.export });
    at("export-result").textContent = `Written: ${found.path}`;
  } catch (error) {
    at("export-result").textContent = error.message;
  }
  button.disabled = false;
}

// ---------------------------------------------------------------------------------------------------------- keyboard

const tileAt = (key, place) => document.querySelector(`button.tile[data-list="${key}"][data-place="${place}"]`);

function visibleTiles(key) {
  const box = document.querySelector(`.tiles[data-list="${key}"]`);
  if (!box) return [];
  const bottom = box.getBoundingClientRect().bottom;
  return [...box.querySelectorAll("button.tile")].filter((one) => one.getBoundingClientRect().top < bottom - 8);
}

function rows() {
  return [...document.querySelectorAll("main .tiles")].map((one) => one.dataset.list).filter((key) => visibleTiles(key).length);
}

function focusTile(key, place, isMoving = true) {
  const shown = visibleTiles(key);
  if (!shown.length) {
    const first = rows()[0];
    if (first === undefined || first === key) return;
    return focusTile(first, 0, isMoving);
  }
  const element = tileAt(key, place) ?? (page.open ? null : shown.at(-1));
  if (!element) return;
  for (const one of document.querySelectorAll('button.tile[tabindex="0"]')) one.tabIndex = -1;
  element.tabIndex = 0;
  page.cursor = { key, place: Number(element.dataset.place) };
  element.focus({ preventScroll: !isMoving });
}

function restoreFocus() {
  if (page.cursor.key && tileAt(page.cursor.key, page.cursor.place)) focusTile(page.cursor.key, page.cursor.place, false);
  else if (rows().length) focusTile(rows()[0], 0, false);
}

function move(event) {
  const { key, place } = page.cursor, shown = visibleTiles(key);
  if (!shown.length) return restoreFocus();
  const columns = shown.filter((one) => one.offsetTop === shown[0].offsetTop).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const next = place + by, total = page.open ? page.state.lists[key].total : Number(shown.at(-1).dataset.place) + 1;
  if (next < 0 || next >= total) {
    if (!page.open && event.key !== "ArrowLeft" && event.key !== "ArrowRight") changeRow(Math.sign(by));
    return;
  }
  if (event.shiftKey) {
    page.selected.add(Number(tileAt(key, place)?.dataset.index));
    page.selected.add(Number(tileAt(key, next)?.dataset.index));
    page.selected.delete(NaN);
  }
  page.cursor.place = next;
  if (!tileAt(key, next)) { scrollBy(0, Math.sign(by) * innerHeight / 2); fill(); }
  focusTile(key, next);
  if (event.shiftKey) showSelection();
}

function changeRow(by) {
  const all = rows(), place = all.indexOf(page.cursor.key);
  const next = all[Math.min(all.length - 1, Math.max(0, place + by))];
  if (next !== undefined) focusTile(next, 0);
}

function chosen() {
  if (page.large !== null) return [page.large];
  if (page.selected.size) return [...page.selected];
  const element = focused();
  return element ? [Number(element.dataset.index)] : [];
}

const focused = () => document.activeElement?.closest?.("button.tile") ?? tileAt(page.cursor.key, page.cursor.place);

// In the row of those to be asked next, the next one is the first again; elsewhere the cursor stays where it is.
function byKey(act) {
  releaseHold();
  if (page.large === null && page.cursor.key === "uncertain" && !page.open) page.cursor.place = 0;
  act();
}

function rowClass() {
  const id = Number(page.cursor.key?.split("-")[1]);
  return classOf(id) ?? classOf(page.active);
}

const KEYS = {
  n: () => askName(null),
  c: () => { const indices = chosen(); if (indices.length && classes().length) byKey(() => askClass(indices)); },
  u: () => { if (page.state.undo !== null) byKey(() => send({ kind: "undo" }, () => say("Undone."))); },
  r: () => { const one = rowClass(); if (one) askName(one); },
  j: () => changeRow(1),
  k: () => changeRow(-1),
  x: () => { const element = focused(); if (element) toggle(Number(element.dataset.index)); showSelection(); },
  a: () => { for (const element of visibleTiles(page.cursor.key)) page.selected.add(Number(element.dataset.index)); showSelection(); },
  o: () => (page.open ? closeList() : page.cursor.key && openList(page.cursor.key)),
  e: openExport,
  m: () => { const all = page.state.methods; chooseMethod(all[(all.indexOf(page.state.method) + 1) % all.length]); },
  "+": () => resize(1),
  "=": () => resize(1),
  "-": () => resize(-1),
  "?": () => openDialog("help-dialog"),
  " ": () => { const [index] = chosen(); if (index !== undefined) openLarge(index); },
  Enter: () => byKey(() => confirm(chosen())),
  Backspace: () => byKey(() => give(chosen(), null)),
  Delete: () => byKey(() => give(chosen(), null)),
  Escape: () => {
    if (page.selected.size) { page.selected.clear(); showSelection(); }
    else if (page.open) closeList();
    else if (page.active !== null) { page.active = null; showTop(); }
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.target.closest("input")) { event.preventDefault(); KEYS.u(); }
    return;
  }
  if (!page.state || event.target.closest("input, select")) return;
  const dialog = document.querySelector("dialog[open]");
  if (dialog && dialog.id !== "large-dialog") return;
  const place = "1234567890".indexOf(event.key);
  if (event.key.length === 1 && place >= 0 && classes()[place]) {
    event.preventDefault();
    const indices = chosen(), { id } = classes()[place];
    if (indices.length) byKey(() => give(indices, id));
    else useClass(id);
    return;
  }
  if (dialog) {
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") stepLarge(event.key === "ArrowRight" ? 1 : -1);
    else if (event.key === " ") { event.preventDefault(); dialog.close(); }
    else if (event.key === "u" || event.key === "Backspace") KEYS[event.key]();
    return;
  }
  if (event.key.startsWith("Arrow")) {
    if (event.target.closest("nav, footer") || (!rows().length)) return;
    event.preventDefault();
    move(event);
    return;
  }
  const isControl = event.target.closest("button, a") && !event.target.closest(".tile");
  if (isControl && (event.key === "Enter" || event.key === " ")) return; // they press what has the focus
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
}

// ------------------------------------------------------------------------------------------------------------- start

function resize(by) {
  page.side = Math.min(SIDES.length - 1, Math.max(0, page.side + by));
  document.documentElement.style.setProperty("--tile", `${SIDES[page.side]}px`);
  if (page.open) fill();
}

async function chooseMethod(method) {
  try {
    show(await ask("method", { catalogue: page.state.catalogue, method }));
    say(`Sorted by ${method}.`);
  } catch (error) {
    notice(error.message);
  }
}

document.addEventListener("keydown", onKey);
addEventListener("pointerdown", () => { page.isDown = true; });
const release = () => setTimeout(() => { // after the click
  page.isDown = false;
  const { waiting } = page;
  page.waiting = null;
  if (waiting) show(waiting);
});
addEventListener("pointerup", release);
addEventListener("pointercancel", release);
addEventListener("pointermove", (event) => {
  if (page.isDown && event.buttons === 0) release(); // it was released outside
  if (page.hold && event.target.closest?.(".tiles")?.dataset.list === page.hold.key) keepHold();
});
at("main").addEventListener("click", (event) => {
  const element = event.target.closest("button.tile");
  if (element && event.detail !== 0) clickTile(element, event); // a key is no click
});
at("main").addEventListener("dblclick", (event) => {
  const element = event.target.closest("button.tile");
  if (element && page.active === null) { page.selected.clear(); showSelection(); openLarge(Number(element.dataset.index)); }
});
at("main").addEventListener("focusin", (event) => {
  const element = event.target.closest("button.tile");
  if (element) page.cursor = { key: element.dataset.list, place: Number(element.dataset.place) };
});
at("undo").onclick = () => { releaseHold(); send({ kind: "undo" }, () => say("Undone.")); };
at("export").onclick = openExport;
at("help").onclick = KEYS["?"];
at("method").onchange = (event) => chooseMethod(event.target.value);
at("large-next").onclick = () => stepLarge(1);
at("large-back").onclick = () => stepLarge(-1);
at("large-dialog").onclose = () => { page.large = null; restoreFocus(); };
for (const button of document.querySelectorAll("[data-export]")) button.onclick = () => exportAs(button);
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
addEventListener("scroll", () => { if (page.open) requestAnimationFrame(fill); }, { passive: true });
addEventListener("resize", () => { if (page.open) fill(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh().catch((error) => notice(error.message)); });
poll();
