// The page from top to bottom. What lies below the first map waits until it is drawn.

const page = document.getElementById("page");
readMap(shownGroup(), state.kind); // is unpacked by another thread while the page is made
const map = trajectoryMap();
filled(page, pageHeader(), findings(), selection(), h("div", { class: "columns" }, map.section, curves()));
await map.drawn;
await new Promise((shown) => setTimeout(shown));
page.append(
  ...(CONTENT.comparison ? [acrossSettings()] : []),
  ...(CONTENT.runs.length > 1 ? [severalRuns()] : []),
  training(),
  h("div", { class: "columns" }, turns(), windows()),
  keyFigures(),
  layers(),
  redundancy(),
  h("div", { class: "columns" }, pathInComponents(), spectrum()),
  settling(),
  h(
    "footer",
    {},
    `Made ${CONTENT.made} by hallmarks ${CONTENT.version} from the store ${CONTENT.store}. The address of this page holds what is shown: copy it to send this view.`,
  ),
);
