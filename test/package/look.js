// Runs inside a page in a browser, which is given its source; everything that it needs is in it.

/** What a browser says of a page: see `Look` in report-page.cases.ts. */
export function look(view) {
  const page = view.document;
  const channel = (value) => (value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [red = 0, green = 0, blue = 0] = (colour.match(/[\d.]+/g) ?? []).map(Number);
    return 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
  };
  const background = view.getComputedStyle(page.body).backgroundColor;
  const contrast = (colour) => {
    const [high, low] = [luminance(colour), luminance(background)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const pictures = [...page.querySelectorAll("figure svg")];
  const texts = pictures.flatMap((picture) => [...picture.querySelectorAll("text")]);
  const cut = texts.filter((text) => {
    const box = text.getBoundingClientRect();
    const frame = text.closest("svg").getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
  });
  const small = texts.filter((text) => {
    const picture = text.closest("svg");
    const scale = picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
    return parseFloat(view.getComputedStyle(text).fontSize) * scale < 9;
  });
  const words = [...page.querySelectorAll("h1,h2,h3,h4,p,td,th,figcaption span"), ...texts];
  const faint = words.flatMap((element) => {
    const style = view.getComputedStyle(element);
    const found = contrast(element.closest("svg") === null ? style.color : style.fill);
    return found < 4.5 ? [`${element.textContent.slice(0, 30)}: ${found.toFixed(2)}`] : [];
  });
  return {
    width: view.innerWidth,
    scrollWidth: page.documentElement.scrollWidth,
    figures: pictures.length,
    empty: pictures.filter((picture) => picture.getBoundingClientRect().height < 40).length,
    cut: cut.map((text) => text.textContent),
    small: small.length,
    faint: [...new Set(faint)],
    background,
  };
}
