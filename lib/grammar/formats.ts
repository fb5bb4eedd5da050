/** String formats of JSON Schema that a grammar enforces; others are annotations, as the standard has it. */

const HOUR_MINUTE = '([01]\\d|2[0-3]):[0-5]\\d'
const TIME = `${HOUR_MINUTE}:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]${HOUR_MINUTE})`
/** Without 29 February: whether a year has it is not regular enough to be worth it. */
const DATE =
  '\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))'
const LABEL = '[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?'
const HOST = `${LABEL}(\\.${LABEL}){0,4}`
const BYTE = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'

export const STRING_FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE}T${TIME}`,
  duration: 'P(\\d{1,4}W|\\d{1,4}D|(\\d{1,4}D)?T\\d{1,4}[HMS])',
  email: `[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,32}){0,3}@${LABEL}(\\.${LABEL}){1,3}`,
  hostname: HOST,
  ipv4: `${BYTE}(\\.${BYTE}){3}`,
  ipv6: '[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}',
  uri: `https?://${HOST}(:[1-9]\\d{0,3})?(/[A-Za-z0-9_.~-]{0,64}){0,8}(\\?[A-Za-z0-9_.~=&-]{0,64})?`,
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}',
}
